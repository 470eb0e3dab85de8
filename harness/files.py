"""Writing of files: complete or not at all, and only to new or regular files."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from harness.errors import BadInput


def check_target(path: Path, instead: str = "file") -> Path:
    """Check that a file can be written under a path, without writing anything.

    Parameters
    ----------
    path : Path
        The file to write.
    instead : str
        The argument or option to change if it cannot be written, for the message.

    Returns
    -------
    Path
        The file itself, with links resolved.

    Raises
    ------
    BadInput
        If the path is a folder, a device or another irregular file, its name is too long, or its
        folder does not exist or cannot be written.
    """
    try:
        real = Path(os.path.realpath(path))
        with suppress(FileNotFoundError):
            mode = real.stat().st_mode
            if stat.S_ISDIR(mode):
                raise BadInput(f"{path} is a folder; give another {instead}")
            if not stat.S_ISREG(mode):
                raise BadInput(f"{path} is no regular file; give another {instead}")
        if not real.parent.is_dir():
            raise BadInput(f"{path}: the folder {path.parent} does not exist; make it first")
    except OSError as error:
        refuse(path, error, instead)
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path!r} is no valid path ({error}); give another {instead}") from None
    if not os.access(real.parent, os.W_OK | os.X_OK):
        refuse(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), instead)
    return real


def refuse_irregular(path: Path) -> None:
    """Refuse a folder, a device or a FIFO, to which nothing can be appended.

    Raises
    ------
    BadInput
        If the path exists and is no regular file.
    """
    with suppress(OSError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInput(f"{path} is no regular file; give another file with --out")


def refuse(path: Path, error: OSError, instead: str = "file") -> NoReturn:
    """Raise ``BadInput`` for a file that cannot be written."""
    reason = error.strerror or str(error) or type(error).__name__
    raise BadInput(f"cannot write {path}: {reason}; give another {instead}") from None


class Replacement:
    """A temporary file beside its target, which replaces the target when it is complete.

    Parameters
    ----------
    path : Path
        The target: absent, or a regular file. A link keeps pointing to its file, which is
        replaced.
    instead : str
        As for ``check_target``.

    Attributes
    ----------
    part : Path
        The temporary file, which exists and is empty at first.

    Raises
    ------
    BadInput
        As ``check_target``, or if the temporary file cannot be made.
    """

    def __init__(self, path: Path, instead: str = "file") -> None:
        self._path, self._instead = path, instead
        self._real = check_target(path, instead)
        try:
            remove_abandoned_parts(self._real.parent)
            self.part, self._lock = _make_part(self._real.parent)
        except OSError as error:
            refuse(path, error, instead)

    def commit(self) -> None:
        """Replace the target.

        Raises
        ------
        BadInput
            If the content does not reach the disk or the target cannot be replaced.
        """
        try:
            with self.part.open("rb+") as file:
                os.fsync(file.fileno())
            check_target(self._path, self._instead)
            if self._real.exists():
                shutil.copymode(self._real, self.part)
            os.replace(self.part, self._real)
        except OSError as error:
            refuse(self._path, error, self._instead)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        with suppress(OSError):
            self.part.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


PART = ".{}.part"
"""Name of a temporary file; of fixed length, since a suffix could make a valid name too long."""


def _make_part(folder: Path) -> tuple[Path, int | None]:
    """Make a temporary file that this process holds locked; return it with its descriptor."""
    while True:
        part = folder / PART.format(secrets.token_hex(8))
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            os.close(handle)
            return part, None
        if part.exists():  # nobody has removed it in between
            return part, handle
        os.close(handle)


def remove_abandoned_parts(folder: Path) -> None:
    """Remove the temporary files of a folder whose processes have died."""
    for part in folder.glob(PART.format("[0-9a-f]" * 16)):
        with suppress(OSError):
            handle = os.open(part, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(handle)


@contextmanager
def replacing(path: Path, instead: str = "file") -> Iterator[Path]:
    """Write a file under a temporary name, which replaces the target at the end.

    Parameters
    ----------
    path : Path
        As for ``Replacement``.
    instead : str
        As for ``check_target``.

    Yields
    ------
    Path
        The temporary file. The body does nothing but write it.

    Raises
    ------
    BadInput
        If the target cannot be written; nothing is left behind then.
    """
    replacement = Replacement(path, instead)
    try:
        yield replacement.part
        replacement.commit()
    except OSError as error:
        refuse(path, error, instead)
    finally:
        replacement.discard()


def write_bytes(path: Path, content: bytes, instead: str = "file") -> None:
    """Write a complete file or none; see ``replacing``."""
    with replacing(path, instead) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str, instead: str = "file") -> None:
    """Write a complete text file in UTF-8 or none; see ``replacing``."""
    write_bytes(path, content.encode(), instead)


def make_folder(folder: Path, instead: str = "folder") -> None:
    """Make a folder and its parents.

    Raises
    ------
    BadInput
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(folder, error, instead)
    except ValueError as error:
        raise BadInput(f"{folder!r} is no valid path ({error}); give another {instead}") from None
