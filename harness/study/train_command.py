"""``python -m harness train``: train the network on a user's own events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.accuracy.classification import measure_accuracy
from harness.accuracy.text import accuracy_lines
from harness.errors import BadInput
from harness.events import CLASSES
from harness.events.child_reader import open_in_child
from harness.files import check_target, make_folder
from harness.options import positive
from harness.spec.cell import SIZES
from harness.study.plan import Plan, Tests
from harness.study.views import View

WEIGHTS_FILE = "weights.npz"
HELD_OUT = "held-out"
MOST_HELD_OUT = 256
"""Held-out events for the accuracy at the end."""


def train(
    events: Annotated[
        list[str], typer.Option(help="A file of events; repeatable, sizes may differ.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, the curve and the weights.")],
    held_out: Annotated[
        str | None, typer.Option(help="A file of other events; by default the packed sample.")
    ] = None,
    engine: Annotated[str, typer.Option(help="The engine: NAME or NAME:OPTION=VALUE.")] = "sscn",
    minutes: Annotated[
        float, typer.Option(callback=positive, help="Training time; a longer one continues.")
    ] = 20.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps at most; in that case no limit of time.", min=1)
    ] = None,
    batch: Annotated[int, typer.Option(help="Events per step.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of the weights and the order of events.", min=0)] = 0,
) -> None:
    """Train the UResNet on files of events; the same command again continues after a stop."""
    from backends import weight_files
    from backends.registry import module_name, probe
    from harness.run.plan import unavailable_reason
    from harness.spec.cell import Cell
    from harness.spec.suite import parse_engine
    from harness.study.predictions import load_predictions
    from harness.study.training_process import run_training

    name, options = parse_engine(engine)
    module_name(name)
    sizes = _sizes(events)
    first, *more = sizes
    size = sizes[first]
    view = View(first, size, also=tuple(more))
    other = View(held_out or _sample(size), size)
    cell = Cell(
        *("train", name, size, batch, "step", "cold"),
        device=device,
        precision=precision,
        options=options,
    )
    reason = unavailable_reason(cell, probe(name))
    if reason:
        raise BadInput(f"cannot train: {reason}")
    plan = Plan(
        name=f"{size} px",
        backend=name,
        events=view,
        held_out=other,
        batch=batch,
        steps=steps or 10**9,
        seconds=0.0 if steps else 60 * minutes,
        evaluate_every=150,
        held_out_events=64,
        optimiser="muon",
        learning_rate=6e-3,
        warm_up=100,
        average=0.9975,
        device=device,
        precision=precision,
        options=options,
        seed=seed,
    )
    make_folder(out, "--out")
    target = check_target(out / WEIGHTS_FILE, "--out")
    console = Console()
    tests: Tests = {HELD_OUT: (other, MOST_HELD_OUT)}
    outcome = run_training(out, plan, tests, out / "records.jsonl", console)
    if outcome != "ok":
        raise typer.Exit(1)
    weight_files.write(target, weight_files.read(out / "checkpoint.pt", name))
    with open_in_child(other.source, size=size) as held:
        predicted = list(load_predictions(out / f"{HELD_OUT}.npz", held[:MOST_HELD_OUT], CLASSES))
    accuracy = measure_accuracy(
        [p.truth for p in predicted], [p.predicted for p in predicted], CLASSES
    )
    for line in [*accuracy_lines(accuracy), f"weights: {target}"]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _sizes(sources: list[str]) -> dict[str, int]:
    """Return the voxels per side of the events of each file, the largest first.

    Raises
    ------
    BadInput
        If a file cannot be read, or its first events have no labels.
    """
    sizes = {}
    for source in sources:
        with open_in_child(source) as events:
            sizes[source] = events.size
            first = events[: min(len(events), 16)]
            if not any((event.labels < CLASSES).any() for event in first):
                raise BadInput(f"{source} has no labels to train with; give events with labels")
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _sample(size: int) -> str:
    """Return the packed sample as held-out events, if it has the size."""
    if size not in SIZES:
        raise BadInput(f"the packed sample has no events of {size} px; give --held-out FILE")
    return "sample"
