"""Output to a terminal: text without control characters, and a console for tables."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

COMMAND = "sscn-bench"
"""The command of an installation, the same as ``python -m harness``."""

PIPE_WIDTH = 160
"""Width in columns where the output is not a terminal."""


_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\\\)?|.)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Return a text without escape sequences and control characters except tabs and newlines."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def program() -> str:
    """Return the name by which the harness was called: its command, or the module of Python."""
    called = Path(sys.argv[0]).name
    return called if called == COMMAND else "python -m harness"


def command_line() -> str:
    """Return the command line of this process as it can be typed again."""
    return " ".join([program(), *map(shlex.quote, sys.argv[1:])])


_QUIET = ContextVar("quiet", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Print no progress until the end of the context, in a notebook neither."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def progress_console() -> Console:
    """Return a console for messages and progress."""
    from rich.console import Console

    return Console(quiet=_QUIET.get())


def table_console() -> Console:
    """Return a console for tables on standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
