"""``python -m harness suites``: the list of suites and their questions."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def suites() -> None:
    """Show the suites, their question and their number of cells."""
    from harness.spec.suite import find_suites

    table = Table("suite", "question", "cells")
    for suite in find_suites().values():
        table.add_row(suite.name, suite.question, str(len(suite.cells())))
    Console().print(table)
