"""Temporary folders of runs: removed with the run, or by the next one if the run was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import MachineFailure

PREFIX = "sscn-bench-run-"
OWNER = "owner.lock"
"""File in each folder that its run holds locked."""

NEEDED_BYTES = 1 << 20
"""Space that the temporary folder must have before a run starts."""


def temporary_failure(error: OSError) -> MachineFailure:
    """Return the failure that stands for an error in the temporary folder."""
    name = error.filename or os.environ.get("TMPDIR") or "/tmp"
    reason = error.strerror or str(error)
    return MachineFailure(
        f"the temporary folder cannot be used ({name}: {reason}); free some space or set TMPDIR"
    )


def require_temporary_space() -> None:
    """Check that temporary files can be written, before engines are started.

    Raises
    ------
    MachineFailure
        If the temporary folder is full or cannot be written to.
    """
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(NEEDED_BYTES))
            file.flush()
    except OSError as error:
        raise temporary_failure(error) from None


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Yield a temporary folder that is removed at the end; remove those of dead runs first.

    Raises
    ------
    MachineFailure
        If the temporary folder is full or cannot be written to.
    """
    try:
        remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Locked before it has its name: another run never sees it unlocked.
        handle = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        (folder / "new").rename(folder / OWNER)
    except OSError as error:
        raise temporary_failure(error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user's runs that are no longer alive.

    Parameters
    ----------
    parent : Path
        The temporary folder.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            handle = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its run is alive
        finally:
            os.close(handle)
