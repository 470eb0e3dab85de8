"""Locks on devices: two measurements on one device at a time would disturb each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def device_lock(
    device: str, say: Callable[[str], None], folder: Path | None = None
) -> Iterator[None]:
    """Hold a device while the context is open; wait for another process that holds it.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    say : callable
        Called with one line if the device is held by another process.
    folder : Path, optional
        Folder of the lock file.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "cuda" else ""
    name = f"sscn-bench-{os.getuid()}-{device}-{visible.replace('/', '_')}.lock"
    with ((folder or Path(tempfile.gettempdir())) / name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is measuring on {device}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
