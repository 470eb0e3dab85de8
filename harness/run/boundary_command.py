"""``python -m harness boundary``: the largest batch that fits into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.files import refuse_irregular
from harness.options import positive
from harness.results import store
from harness.spec.cell import RANDOM, TRAINED
from harness.spec.network import HELP as NETWORK_HELP
from harness.spec.network import find_network
from harness.terminal import plain


def boundary(
    memory: Annotated[
        float,
        typer.Argument(callback=positive, help="Memory for one call, in GB."),
    ],
    backend: Annotated[list[str] | None, typer.Option(help="Only this engine.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Only images of this size.")] = None,
    phase: Annotated[str, typer.Option(help="forward or step.")] = "step",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16.")] = "fp32",
    network: Annotated[str, typer.Option(help=NETWORK_HELP)] = "study",
    most: Annotated[int, typer.Option(help="The largest batch to try.", min=1)] = 256,
    events: Annotated[str, typer.Option(help="A file of events, or 'sample'.")] = "sample",
    weights: Annotated[
        str, typer.Option(help="trained, random, or an .npz file of a network's weights.")
    ] = TRAINED,
    out: Annotated[Path | None, typer.Option(help="File of records, one per batch tried.")] = None,
    timeout: Annotated[
        float, typer.Option(callback=positive, help="Longest time for one answer, in seconds.")
    ] = 900.0,
) -> None:
    """Find the largest batch at each size that fits into a given amount of memory."""
    from backends.registry import interpreter, probe_all
    from harness.run.job import Job
    from harness.run.locks import device_lock
    from harness.run.max_batch import Probe, find_max_batch
    from harness.run.plan import unavailable_reason, with_events, with_weights
    from harness.run.progress import format_outcome
    from harness.run.rounds import default_out, write_record
    from harness.run.source import EngineSource
    from harness.run.task import Task
    from harness.run.weight_files import find_weights
    from harness.spec.cell import SIZES
    from harness.spec.suite import ENGINES, Grid, Suite, parse_engine
    from harness.temporary import require_temporary_space

    grid = Grid(sizes=SIZES, batches=(1,), phases=(phase,), maps=("cold",))
    suite = Suite("boundary", "How large a batch fits?", (grid,))
    cells = suite.cells(
        device=device,
        precision=precision,
        backends=backend or (),
        sizes=size or (),
        network=find_network(network),
    )
    engines = dict.fromkeys(parse_engine(text)[0] for text in backend or ENGINES)
    found = {answer.name: answer for answer in probe_all(engines)}
    path = out or default_out("boundary")
    refuse_irregular(path)
    store.check_writable(path)
    require_temporary_space()
    source, identity = EngineSource.here(), path.stem
    console = Console()
    table = Table("engine", "size", f"largest batch within {memory:g} GB")
    for cell in with_weights(with_events(cells, events), find_weights(weights)):
        reason = unavailable_reason(cell, found[cell.backend])
        if reason:
            table.add_row(cell.engine, f"{cell.size} px", reason)
            continue

        def on_probe(task: Task, probe: Probe) -> None:
            record = write_record(path, task, probe.entries, identity, 0)
            fits = "fits" if probe.fits else "does not fit"
            text = f"{task.job.cell.title}: {fits}: {format_outcome(record)}"
            console.print(plain(text), highlight=False, soft_wrap=True, markup=False)

        used = "" if cell.weights == RANDOM else weights
        task = Task(Job(cell, events, weights=used), 0, source, interpreter(cell.backend), timeout)
        with device_lock(device, console.print):
            batch = find_max_batch(task, int(memory * 1e9), most, on_probe)
        more = " or more" if batch == most else ""
        table.add_row(cell.engine, f"{cell.size} px", f"{batch}{more}")
    console.print(table)
