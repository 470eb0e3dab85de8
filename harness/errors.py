"""The exceptions that end a command with one sentence."""

from __future__ import annotations

import sys
from pathlib import Path


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message is one sentence that names the input and says what to change. The
    command line prints it without a traceback and exits with code 2.
    """


def in_clone() -> bool:
    """Return whether the harness runs from a clone of its repository."""
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()


class MachineFailure(BadInput):
    """The machine, not the input or an engine, prevents the work: a full disk, a killed process."""


def missing_packages(packages: str, extra: str) -> BadInput:
    """Return the error for packages that an optional part of the project needs.

    Parameters
    ----------
    packages : str
        Their names.
    extra : str
        The extra of ``pyproject.toml`` that installs them.
    """
    root = Path(__file__).resolve().parents[1]
    if in_clone():  # a clone: its constraints keep torch where it is
        command = f"-c {root / 'constraints.txt'} --editable '{root}[{extra}]'"
    else:
        command = f"'sscn-bench[{extra}]'"
    return BadInput(
        f"this needs {packages}, not installed here; add it with: {sys.executable} -m pip install "
        f"{command}"
    )
