"""``python -m harness backends``: the engines that can run here."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from harness.options import positive


def backends(
    timeout: Annotated[
        float,
        typer.Option(callback=positive, help="Longest time for one answer, in seconds."),
    ] = 60.0,
) -> None:
    """Show the engines that can run here, their devices and precisions, and why others cannot."""
    from backends.registry import names, probe_all
    from backends.table import absences, engines_table

    answers = {found.name: found for found in probe_all(timeout=timeout)}
    ordered = [answers[name] for name in names()]
    console = Console()
    console.print(engines_table(ordered))
    console.print("not here:", *absences(ordered), sep="\n  ", markup=False, soft_wrap=True)
