"""Reading of an event file in a child process with limits on memory and time.

The libraries for ROOT and HDF5 may crash, allocate all memory or never return on a damaged file.
In a child process this ends in one sentence. Commands that read files of the user in their own
process open them here; the workers of a run, which are child processes with limits, use
``harness.events.open.open_events``.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.child_process import die_with_parent, without_script
from harness.errors import BadInput
from harness.events.event import Event
from harness.events.event_set import EventSet, file_sha256
from harness.events.open import SAMPLE, open_events
from harness.events.sample import open_sample

SECONDS = 60.0
"""Longest time for opening a file or reading a block of events."""

MEMORY_BYTES = 8 << 30
"""Address space of the child process."""


def open_in_child(
    source: str | Path,
    *,
    size: int | None = None,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> EventSet:
    """Open a set of events that a child process reads; see ``harness.events.open.open_events``.

    Parameters
    ----------
    source : str or Path
    size : int, optional
    seconds : float
        Longest time for opening the file and for each block of events.
    memory_bytes : int
        Address space of the child process.

    Raises
    ------
    BadInput
        As ``open_events``, or if the child process crashes or exceeds a limit.
    """
    if str(source) == SAMPLE:
        return open_sample(size)
    if not Path(source).is_file():
        return open_events(source, size=size)
    return ChildSet(Path(source), size, seconds, memory_bytes)


class ChildSet(EventSet):
    """Events of a file that a child process reads.

    Parameters
    ----------
    path : Path
    size : int, optional
        As for ``open_events``.
    seconds, memory_bytes
        As for ``open_in_child``.
    """

    _length: int

    def __init__(self, path: Path, size: int | None, seconds: float, memory_bytes: int) -> None:
        self._path, self._seconds = path, seconds
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._child = context.Process(
            target=_serve, args=(theirs, path, size, memory_bytes), daemon=True
        )
        with without_script():
            self._child.start()
        theirs.close()
        try:
            self.name, self.sizes, self._length = self._answer("the file")
        except BaseException:
            self.close()
            raise

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, see ``harness.events.event_set.file_sha256``."""
        return file_sha256(self._path)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events."""
        with suppress(OSError):  # of a dead child, there is no answer
            self._connection.send((start, stop))
        events: list[Event] = self._answer(f"events {start} to {stop - 1}")
        return events

    def close(self) -> None:
        """End the child process."""
        self._connection.close()
        self._child.kill()
        self._child.join()

    def _answer(self, what: str) -> Any:
        """Receive an answer of the child process, or raise why there is none."""
        try:
            if not self._connection.poll(self._seconds):
                self._child.kill()
                raise BadInput(
                    f"{self._path}: {what} could not be read within {self._seconds:g} s, the file "
                    "is damaged; fetch or make it again"
                )
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._child.join(self._seconds)
            raise BadInput(
                f"{self._path}: {what} cannot be read, the reader died of "
                f"{_cause(self._child.exitcode)}; the file is damaged, fetch or make it again"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _cause(exitcode: int | None) -> str:
    """The cause of a process' death in words."""
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"exit code {exitcode}"


def _serve(connection: Connection, path: Path, size: int | None, memory_bytes: int) -> None:
    """Open a file, and read the blocks of events that the parent process requests."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        events = open_events(path, size=size)
        _send(connection, (events.name, events.sizes, len(events)))
        while True:
            start, stop = connection.recv()
            _send(connection, _read(events, start, stop))
    except (EOFError, ConnectionError):
        return
    except BadInput as refusal:
        _send(connection, refusal)


def _read(events: EventSet, start: int, stop: int) -> Sequence[Event] | BadInput:
    try:
        return events.read(start, stop)
    except BadInput as refusal:
        return refusal


def _send(connection: Connection, answer: object) -> None:
    try:
        connection.send(answer)
    except BrokenPipeError:
        raise EOFError from None
