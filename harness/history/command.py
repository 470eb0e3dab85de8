"""The command ``python -m harness history``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import BadInput
from harness.history.findings import (
    SeriesChanges,
    change_rows,
    count_environment_changes,
    find_all_changes,
    summary,
)
from harness.history.series import Commits, load
from harness.report.rows import Format, write_rows
from harness.results.store import RESULTS
from harness.spec.metrics import format_value
from harness.terminal import program, table_console

LINES_ON_A_SCREEN = 40


def history(
    report: Annotated[
        Path | None, typer.Option(help="Write the page history.html into this directory.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.table,
) -> None:
    """Show every stored run over commits, with the change points found."""
    series = load(RESULTS, Commits.of(Path.cwd()))
    if not series:
        raise BadInput(f"there are no runs under {RESULTS}; measure one with: {program()} run")
    found = find_all_changes(series)
    if format is Format.table:
        _print(found)
    else:
        typer.echo(write_rows(change_rows(found), format))
    if report is not None:
        from harness.history.page import write_history_page

        path = write_history_page(report, found)
        typer.echo(f"page: {path}", err=format is not Format.table)


def _print(found: Sequence[SeriesChanges]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = table_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("engine", "where", "metric", "now", "change"):
        table.add_column(name, overflow="fold")
    changed = [(s, change) for s in found for change in s.changes]
    for s, change in changed[:LINES_ON_A_SCREEN]:
        latest = s.points[-1].value
        table.add_row(
            s.key.engine,
            s.key.where,
            s.key.metric.name,
            format_value(latest, s.key.metric.unit),
            escape(change.words),
        )
    if changed:
        console.print(table)
    if len(changed) > LINES_ON_A_SCREEN:
        console.print(f"{len(changed) - LINES_ON_A_SCREEN} more: see --format csv.")
    for (difference, commits), count in count_environment_changes(found).items():
        console.print(f"changed: {difference} in {commits} ({count} series)", markup=False)
    console.print(summary(found))
