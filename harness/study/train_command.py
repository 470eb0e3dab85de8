"""``python -m harness train``: train the network on a user's own events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.accuracy.classification import measure_accuracy
from harness.accuracy.text import accuracy_lines
from harness.errors import BadInput
from harness.events.child_reader import open_in_child
from harness.events.track_shower import TrackShowerSet
from harness.files import check_target, make_folder
from harness.options import positive
from harness.spec.cell import SIZES
from harness.spec.network import HELP as NETWORK_HELP
from harness.spec.network import find_network
from harness.study.mixture import MIXTURE_SEED, EventFolder, simulate_folders
from harness.study.plan import Plan
from harness.study.views import View, event_files

WEIGHTS_FILE = "weights.npz"
MOST_HELD_OUT = 256
"""Held-out events of each size for the accuracy at the end."""

SIMULATED = "simulated"
SIMULATED_EVENTS = {192: 49_152, 512: 6144, 768: 8192}
"""Events of ``--events simulated``, by voxels per side: those of the packaged network."""

_SIMULATED_PRESETS = (*["standard"] * 3, "michel", *["standard"] * 3, "delta")


def train(
    events: Annotated[
        list[str],
        typer.Option(
            help="A file or folder of events, or simulated; repeatable, sizes may differ."
        ),
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
        int | None,
        typer.Option(
            help="Steps, without a limit of time; the rate falls over the second half.", min=1
        ),
    ] = None,
    network: Annotated[str, typer.Option(help=NETWORK_HELP)] = "study",
    batch: Annotated[int, typer.Option(help="Events per step.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16 or bf16.")] = "fp32",
    half: Annotated[
        bool, typer.Option("--half", help="Round the weights to 16 bits, in a small file.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the weights and the order of events.", min=0)] = 0,
) -> None:
    """Train the UResNet on events; the same command again continues after a stop."""
    from backends import weight_files
    from backends.registry import module_name, probe
    from harness.run.plan import unavailable_reason
    from harness.run.workload import uresnet_config
    from harness.spec.cell import Cell
    from harness.spec.suite import parse_engine
    from harness.study.predictions import load_predictions
    from harness.study.training_process import run_training

    name, options = parse_engine(engine)
    module_name(name)
    make_folder(out, "--out")
    target = check_target(out / WEIGHTS_FILE, "--out")
    console = Console()
    if SIMULATED in events:
        events = [source for source in events if source != SIMULATED]
        events += _simulated(out / "events", console)
    sizes = _sizes(events)
    first, *more = sizes
    size = sizes[first]
    model = find_network(network)
    view = View(first, size, model.classes, also=tuple(more))
    tests = _tests(held_out, sorted(set(sizes.values())), model.classes)
    cell = Cell(
        *("train", name, size, batch, "step", "cold"),
        device=device,
        precision=precision,
        options=options,
        model=model,
    )
    reason = unavailable_reason(cell, probe(name))
    if reason:
        raise BadInput(f"cannot train: {reason}")
    plan = Plan(
        name=f"{size} px",
        backend=name,
        events=view,
        held_out=next(iter(tests.values()))[0],
        batch=batch,
        steps=steps or 10**9,
        seconds=0.0 if steps else 60 * minutes,
        evaluate_every=150,
        held_out_events=64,
        optimiser="muon",
        learning_rate=6e-3,
        warm_up=100,
        cool_down=(steps or 0) // 2,
        average=0.9975,
        device=device,
        precision=precision,
        options=options,
        model=model,
        seed=seed,
    )
    outcome = run_training(out, plan, tests, out / "records.jsonl", console)
    if outcome != "ok":
        raise typer.Exit(1)
    config = uresnet_config(model)
    values = weight_files.read(out / "checkpoint.pt", name, config)
    weight_files.write(target, values, half=half)
    for test, (other, count) in tests.items():
        with open_in_child(other.source, size=other.size) as held:
            if model.classes == 2:
                held = TrackShowerSet(held)
            predicted = list(load_predictions(out / f"{test}.npz", held[:count], model.classes))
        accuracy = measure_accuracy(
            [p.truth for p in predicted], [p.predicted for p in predicted], model.classes
        )
        for line in [f"{test}: {len(predicted)} events", *accuracy_lines(accuracy)]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"weights: {target}", highlight=False, soft_wrap=True, markup=False)


def _simulated(folder: Path, console: Console) -> list[str]:
    """Simulate the missing training events of the packaged network; return their folders."""
    folders = [
        EventFolder(folder / f"{size}", size, count, MIXTURE_SEED + 1000 * size, _SIMULATED_PRESETS)
        for size, count in SIMULATED_EVENTS.items()
    ]
    simulate_folders(folders, console)
    return [str(each.path) for each in folders]


def _tests(held_out: str | None, sizes: list[int], classes: int) -> dict[str, tuple[View, int]]:
    """Return the events of the accuracy at the end; the first ones are those of the curve.

    Raises
    ------
    BadInput
        If no file of held-out events is given, and the packed sample has none of a size.
    """
    if held_out is not None:
        return {"held-out": (View(held_out, sizes[-1], classes), MOST_HELD_OUT)}
    for size in sizes:
        if size not in SIZES:
            raise BadInput(f"the packed sample has no events of {size} px; give --held-out FILE")
    return {f"sample-{size}px": (View("sample", size, classes), MOST_HELD_OUT) for size in sizes}


def _sizes(sources: list[str]) -> dict[str, int]:
    """Return the voxels per side of the events of each file, the largest first.

    Raises
    ------
    BadInput
        If a file cannot be read, or its first events have no labels.
    """
    sizes = {}
    for source in sources:
        file = event_files(source)[0] if Path(source).is_dir() else source
        with open_in_child(file) as events:
            sizes[source] = events.size
            if not events.has_labels:
                raise BadInput(f"{source} has no labels to train with; give events with labels")
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
