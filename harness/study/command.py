"""``python -m harness study``: the 2018 study on this machine."""

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
        Path | None, typer.Option(help="Folder of the study; complete parts in it are kept.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, laptop, gpu or paper.")] = "laptop",
    backend: Annotated[str, typer.Option(help="Sparse engine to train.")] = "sscn",
    also: Annotated[
        list[str] | None, typer.Option(help="Measure the costs of this sparse engine as well.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16 or bf16.")] = "fp32",
    minutes: Annotated[
        float, typer.Option(help="Duration of the first training; 0 for that of the scale.", min=0)
    ] = 0.0,
) -> None:
    """Repeat the 2018 study: train, test, measure, and write the page.

    The same command continues an interrupted study.
    """
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise BadInput("name the folder of the study: --out DIR")
    from harness.study.definition import Study
    from harness.study.run import run_study
    from harness.study.scales import find_scale

    find_scale(scale)
    console = Console()
    page = run_study(Study(out, scale, backend, tuple(also or ()), precision, minutes), console)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


@app.command()
def page(
    out: Annotated[Path, typer.Argument(help="Folder of a study.")],
) -> None:
    """Write the page again from the folder of a study, complete or not."""
    from harness.study.definition import read_study
    from harness.study.page import write_study_page

    path = write_study_page(read_study(out))
    Console().print(f"page: {path}", highlight=False, soft_wrap=True)


@app.command(hidden=True)
def train(
    folder: Annotated[Path, typer.Argument(help="Folder with a plan.")],
) -> None:
    """Train and test the network of a plan; this process is started by the study."""
    from harness.study.training_worker import work

    work(folder, Console())
