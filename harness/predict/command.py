"""``python -m harness predict``: labels for a user's own events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from harness.accuracy.classification import Accuracy
from harness.accuracy.text import accuracy_lines
from harness.files import check_target
from harness.spec.cell import TRAINED
from harness.spec.network import HELP as NETWORK_HELP

if TYPE_CHECKING:
    from harness.events import EventSet
    from harness.predict.prediction import Predictor


def predict(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file of events, or 'sample'.")],
    out: Annotated[Path, typer.Option(help="The HDF5 file of labels to write.")],
    weights: Annotated[
        str, typer.Option(help="trained, or an .npz file of a trained network's weights.")
    ] = TRAINED,
    engine: Annotated[str, typer.Option(help="The engine: NAME or NAME:OPTION=VALUE.")] = "sscn",
    network: Annotated[
        str, typer.Option(help=f"{NETWORK_HELP} By default that of the weights.")
    ] = "",
    size: Annotated[int | None, typer.Option(help="Voxels per side, for 'sample'.")] = None,
    batch: Annotated[int, typer.Option(help="Events per forward pass.", min=1)] = 4,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16.")] = "fp32",
) -> None:
    """Label the voxels of all events of a file; the same command again continues after a stop."""
    from harness.events.child_reader import open_in_child
    from harness.predict.prediction import find_predictor

    check_target(out, "--out")
    predictor = find_predictor(
        engine, weights, network=network, batch=batch, device=device, precision=precision
    )
    console = Console()
    with open_in_child(source, size=size) as events:
        accuracy = _with_progress(predictor, events, out, batch, console)
        count = len(events)
    console.print(f"{out}: labels of {count:,} events", highlight=False, soft_wrap=True)
    if accuracy is None:
        console.print("the events have no labels to compare with", highlight=False)
    else:
        for line in accuracy_lines(accuracy):
            console.print(line, highlight=False)


def _with_progress(
    predictor: Predictor, events: EventSet, out: Path, batch: int, console: Console
) -> Accuracy | None:
    """Predict with a bar that counts events."""
    from harness.predict.prediction import predict as predict_events

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task("", total=len(events))
        return predict_events(
            predictor, events, out, batch, lambda done: live.update(task, completed=done)
        )
