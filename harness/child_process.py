"""First steps of every child process: end with the parent, reserve standard output for answers."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import IO

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def private_output() -> IO[str]:
    """Return the standard output as a channel for answers.

    From then on, text printed to standard output goes to standard error.
    """
    channel = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(channel, "w", buffering=1)
