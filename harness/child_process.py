"""Child processes: start, end with the parent or with a session, standard output for answers."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any

PR_SET_PDEATHSIG = 1


OTHERS_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which users, schedulers and the kernel end a process; a crash has others."""


def was_stopped(code: int) -> bool:
    """Return whether the exit code of a child process is that of a process ended from outside."""
    return -code in OTHERS_SIGNALS


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_session(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that leads a session of its own; an interrupt meanwhile ends the session.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    **options
        Those of ``subprocess.Popen``.
    """
    leader = None
    try:
        with _interrupts_held():
            leader = subprocess.Popen(list(command), start_new_session=True, **options)
    except BaseException:
        if leader is not None:
            end_session(leader)
        raise
    return leader


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, with all of its session, and wait for it.

    Compilers that ninja starts are in the session, and each in a process group of its own.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)  # first what would start more
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            session = stat.read_text().rpartition(")")[2].split()[3]
            if int(session) == leader.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)
    leader.wait()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the end of the context; in the main thread only."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    handlers = {each: handler for each, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    held: list[tuple[int, FrameType | None]] = []
    for each in handlers:
        signal.signal(each, lambda *given: held.append(given))
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number, _ in held[:1]:
            signal.raise_signal(number)


@contextmanager
def without_script() -> Iterator[None]:
    """Start processes of ``multiprocessing`` without running the user's script again in each.

    A child process usually imports the main module; a script without the guard
    ``if __name__ == "__main__"`` would then start over.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def private_output() -> IO[str]:
    """Return the standard output as a channel for answers.

    From then on, text printed to standard output goes to standard error.
    """
    channel = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(channel, "w", buffering=1)
