"""Locks: one measurement per device at a time, and one run per file of records.

The lock of a device lies in the user's own run-time folder, so that no other user can hold or
replace it. The lock of a file of records lies beside the file, so that it holds for all hosts that
share the file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import BadInput


def runtime_folder() -> Path:
    """Return the user's run-time folder.

    It is ``XDG_RUNTIME_DIR`` or ``/run/user/UID``; where neither exists, a private folder among
    the temporary files.

    Raises
    ------
    BadInput
        If the private folder belongs to somebody else or cannot be made.
    """
    user = os.getuid()
    for name in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        if name and _is_private(Path(name)):
            return Path(name)
    folder = Path(tempfile.gettempdir(), f"sscn-bench-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make {folder} ({error.strerror}); set XDG_RUNTIME_DIR") from None
    if not _is_private(folder):
        raise BadInput(f"{folder} is not a private folder of this user; set XDG_RUNTIME_DIR")
    return folder


def _is_private(folder: Path) -> bool:
    """Return whether a path is a folder, no link, that this user alone can write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    shared = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & shared
    )


def _open(path: Path) -> int:
    """Open a lock file without following links; return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    handle = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadInput(f"the lock {path} is no regular file; remove it")
    return handle


def _unusable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"cannot use the lock {path} ({error.strerror}); remove it")


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
        Folder of the lock file; by default the user's run-time folder.

    Raises
    ------
    BadInput
        If the lock file cannot be used.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "cuda" else ""
    suffix = f"-{hashlib.sha256(visible.encode()).hexdigest()[:16]}" if visible else ""
    lock = (folder or runtime_folder()) / f"sscn-bench-{device}{suffix}.lock"
    try:
        handle = _open(lock)
    except OSError as error:
        raise _unusable(lock, error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is measuring on {device}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Reserve a file of records for this process while the context is open.

    Parameters
    ----------
    path : Path
        The file of records; it need not exist.

    Raises
    ------
    BadInput
        If another process has reserved it, also on another host, or the lock file cannot be used.

    Notes
    -----
    The lock file is removed at the end. Where the file system has no locks, the lock lies in the
    user's run-time folder and holds for this host alone.
    """
    target = Path(os.path.realpath(path))
    lock = target.with_name(f".{target.name}.lock")
    try:
        handle = _reserved(lock, path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unusable(lock, error) from None
        name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
        lock = runtime_folder() / f"sscn-bench-{name}.lock"
        try:
            handle = _reserved(lock, path)
        except OSError as again:
            raise _unusable(lock, again) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def _reserved(lock: Path, path: Path) -> int:
    """Return the descriptor of a lock file that this process holds.

    Raises
    ------
    BadInput
        If another process holds it.
    OSError
        If there can be no lock in that place.
    """
    while True:
        handle = _open(lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise BadInput(
                f"another run is writing to {path}; wait for its end or give another file with "
                "--out"
            ) from None
        except OSError:
            os.close(handle)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        os.close(handle)  # its holder removed the file meanwhile
