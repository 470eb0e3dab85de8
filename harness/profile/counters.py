"""Counts events of the processor in one call, where the kernel lets a process ask for them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVENTS = {"cycles": 0, "instructions": 1, "cache_misses": 3}
"""Numbers of ``PERF_TYPE_HARDWARE`` events, from linux/perf_event.h."""

_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_SIZE = 112
_FLAGS = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 6
"""Disabled at first, inherited by new threads, without kernel and hypervisor."""

_TIMES = 1 | 2
_ENABLE, _DISABLE = 0x2400, 0x2401


class NoCounters(Exception):
    """The processor's events cannot be counted here; the message says why."""


def attributes(event: int) -> bytes:
    """Return the ``perf_event_attr`` that asks for a hardware event of this process alone."""
    return struct.pack("IIQQQQQ", 0, _SIZE, event, 0, 0, _TIMES, _FLAGS).ljust(_SIZE, b"\0")


def scaled(value: int, enabled: int, running: int) -> int:
    """Return a count as if it had run all the time that it was enabled.

    The processor has few counters: the kernel lets events take turns.
    """
    return round(value * enabled / running) if running else 0


def open_event(event: int, thread: int) -> int:
    """Start to count an event of a thread, still disabled; return its file.

    Raises
    ------
    NoCounters
        If the kernel refuses.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise NoCounters(f"there is no perf_event_open known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(number, attributes(event), thread, -1, -1, 0)
    if handle < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise NoCounters("this processor, or the virtual machine on it, offers none")
        raise NoCounters(
            f"the kernel does not let this process count events ({os.strerror(number)}); lower "
            f"/proc/sys/kernel/perf_event_paranoid"
        )
    return handle


def threads(process: Path = Path("/proc/self")) -> list[int]:
    """Return the numbers of the process's threads."""
    return sorted(int(entry.name) for entry in (process / "task").iterdir())


@contextmanager
def _opened(open_: Callable[[int, int], int]) -> Iterator[dict[str, list[int]]]:
    handles: dict[str, list[int]] = {name: [] for name in EVENTS}
    try:
        for name, event in EVENTS.items():
            for thread in threads():
                handles[name].append(open_(event, thread))
        yield handles
    finally:
        for each in handles.values():
            for handle in each:
                os.close(handle)


def count(call: Callable[[], Any], open_: Callable[[int, int], int] = open_event) -> dict[str, int]:
    """Run a call and return the events of all its threads.

    Raises
    ------
    NoCounters
        If the kernel refuses.
    """
    import fcntl

    with _opened(open_) as handles:
        everything = [handle for each in handles.values() for handle in each]
        for handle in everything:
            fcntl.ioctl(handle, _ENABLE, 0)
        call()
        for handle in everything:
            fcntl.ioctl(handle, _DISABLE, 0)
        return {
            name: sum(scaled(*struct.unpack("QQQ", os.read(handle, 24))) for handle in each)
            for name, each in handles.items()
        }
