"""The command line of the study: ``python -m harness study --out DIR [--scale …]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.errors import BadInput

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def study(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; what is complete in it is kept.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, laptop, gpu or paper.")] = "laptop",
    backend: Annotated[str, typer.Option(help="The sparse engine that learns.")] = "sscn",
    also: Annotated[
        list[str] | None, typer.Option(help="Measure the costs of this sparse engine as well.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16 or bf16.")] = "fp32",
    minutes: Annotated[
        float, typer.Option(help="Of the first training; 0: as the scale says.", min=0)
    ] = 0.0,
) -> None:
    """Repeat the 2018 study: train, test, measure, and write the page. Again goes on."""
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise BadInput("say where the study goes: --out DIR")
    from harness.study.parts import Study, conduct
    from harness.study.scales import find_scale

    find_scale(scale)
    console = Console()
    page = conduct(Study(out, scale, backend, tuple(also or ()), precision, minutes), console)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


@app.command()
def page(
    out: Annotated[Path, typer.Argument(help="Folder of a study.")],
) -> None:
    """Write the page again from what a study's folder holds, complete or not."""
    from harness.study.page import write_page
    from harness.study.parts import read

    Console().print(f"page: {write_page(read(out))}", highlight=False, soft_wrap=True)


@app.command(hidden=True)
def train(
    folder: Annotated[Path, typer.Argument(help="Folder that holds a plan.")],
) -> None:
    """Train and test what a folder's plan says; started by the study."""
    from harness.study.trainer import work

    work(folder, Console())
