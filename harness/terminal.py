"""The console for tables: as wide as the terminal, or wide enough for whole rows in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
"""Width in columns where the output is not a terminal."""


def table_console() -> Console:
    """Return a console for tables on standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
