"""Where tables are printed: a terminal at its own width, a pipe with room for whole rows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
"""Columns of what is not a terminal, and has no width of its own."""


def table_console() -> Console:
    """Return a console for tables on standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
