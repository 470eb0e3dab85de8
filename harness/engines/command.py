"""``python -m harness engines``: the engines that can run here, and the proof of one."""

from __future__ import annotations

import os
import subprocess
from typing import Annotated

import typer
from rich.console import Console

from harness.errors import BadInput
from harness.instruments.machine import ROOT
from harness.options import positive
from harness.terminal import program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Timeout = Annotated[
    float, typer.Option(callback=positive, help="Longest time for one answer, in seconds.")
]


@app.callback(invoke_without_command=True)
def engines(context: typer.Context, timeout: Timeout = 60.0) -> None:
    """Show the engines that can run here; other verbs are below."""
    if context.invoked_subcommand is None:
        list_engines(timeout)


@app.command("list")
def list_engines(timeout: Timeout = 60.0) -> None:
    """Show the engines that can run here, their devices and precisions, and why others cannot."""
    from backends.registry import names, probe_all
    from backends.table import absences, engines_table

    answers = {found.name: found for found in probe_all(timeout=timeout)}
    ordered = [answers[name] for name in names()]
    console = Console()
    console.print(engines_table(ordered))
    console.print("not here:", *absences(ordered), sep="\n  ", markup=False, soft_wrap=True)


@app.command()
def prove(
    name: Annotated[str, typer.Argument(help="An engine, built in or of an installed package.")],
) -> None:
    """Check one engine: agreement with float64, and fair warm and cold passes.

    Exits with 1 if a check fails.
    """
    from backends.registry import interpreter, probe

    found = probe(name)
    if found.capabilities is None:
        raise BadInput(f"{name} cannot run here: {found.reason}; see: {program()} engines")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [interpreter(name), "-P", "-m", "backends.proof", name]
    raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)
