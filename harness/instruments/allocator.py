"""The policy of the C library's allocator in a worker, the same for every engine."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""

MMAP_BYTES, TRIM_BYTES = 32 << 20, 1 << 30

_policy = ""


def keep_freed_memory() -> None:
    """Make the C library keep freed memory in the process for the next call.

    Returning pages to the system and faulting them in again takes up to a quarter of a training
    step. The kernels of ``sscn`` set the same thresholds when they are imported; a worker sets them
    before it imports any engine, so that all engines have them.
    """
    global _policy
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    if mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES):
        _policy = "freed memory is kept (mmap from 32 MiB, trim from 1 GiB)"


def policy() -> str:
    """Return the policy that this process has set; empty if it is the C library's own."""
    return _policy
