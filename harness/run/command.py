"""``python -m harness run``: measure a suite."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import BadInput
from harness.options import positive
from harness.spec.cell import TRAINED
from harness.spec.network import HELP as NETWORK_HELP
from harness.spec.network import find_network


def run(
    suite: Annotated[str, typer.Argument(help="As ``suites`` lists them.")],
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this engine: NAME or NAME:OPTION=VALUE.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Not this engine: dense takes most of the time.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Only images of this size.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where an engine has it.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16; by default the suite's.")
    ] = "",
    batch: Annotated[
        list[int] | None, typer.Option(help="Events per call, instead of the suite's.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, each in new processes.", min=1)] = 1,
    budget: Annotated[
        float | None,
        typer.Option(
            callback=positive,
            help="Longest time of sampling per cell and round, in seconds.",
            min=0.01,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of records; a new one under results/runs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue --out, or the suite's latest run.")
    ] = False,
    events: Annotated[str, typer.Option(help="A file of events, or 'sample'.")] = "sample",
    network: Annotated[str, typer.Option(help=f"{NETWORK_HELP} By default the suite's.")] = "",
    weights: Annotated[
        str, typer.Option(help="trained, random, or an .npz file of a network's weights.")
    ] = TRAINED,
    against: Annotated[
        str | None, typer.Option(help="A commit to measure in turns with this code.")
    ] = None,
    against_env: Annotated[
        str | None,
        typer.Option(
            help="An installed engine NAME@VERSION, or the path of a Python with torch and the "
            "engines, to measure in turns with this environment."
        ),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="A scheduler's address, or local:N for N devices here.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads per worker; 0 for all processors.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the order of cells and turns.")] = 0,
    timeout: Annotated[
        float,
        typer.Option(callback=positive, help="Longest time for one answer, in seconds."),
    ] = 900.0,
) -> list[Path]:
    """Measure a suite, and write a record for each cell."""
    from backends.registry import module_name, probe_all
    from harness.run.against import checked_out, environment_engines, environment_source
    from harness.run.plan import with_events, with_weights
    from harness.run.resume import Machines, this_machine
    from harness.run.rounds import Settings, default_out, latest_out, measure_locally
    from harness.run.rounds import run as measure
    from harness.run.sampling import StopRule
    from harness.run.weight_files import find_weights
    from harness.spec.suite import find_suite, parse_engine
    from harness.temporary import require_temporary_space
    from harness.terminal import command_line, program, progress_console

    chosen = find_suite(suite)
    require_temporary_space()
    if against is not None and against_env is not None:
        raise BadInput("give --against or --against-env, not both")
    other, only = None, ""
    if against_env is not None:
        other, only = environment_source(against_env)
        backend = backend or ([only] if only else None)
    engines = [parse_engine(text)[0] for text in backend or chosen.engines]
    left_out = set(exclude or ())
    for name in (*engines, *left_out):
        module_name(name)
    engines = [name for name in engines if name not in left_out]
    found = {answer.name: answer for answer in probe_all(dict.fromkeys(engines))}
    for name in engines if backend else ():
        if found[name].capabilities is None:
            raise BadInput(
                f"{name} cannot run here: {found[name].reason}; see: {program()} backends"
            )
    found_against = None
    if other is not None:
        foreign = [name for name in engines if only and name.partition("@")[0] != only]
        if foreign:
            raise BadInput(f"{against_env} has {only} alone, not {foreign[0]}")
        found_against = environment_engines(other, engines, engines if backend else ())
    if device is None:
        capable = [answer.capabilities for answer in found.values() if answer.capabilities]
        device = "cuda" if any("cuda" in can.devices for can in capable) else "cpu"
    cells = chosen.cells(
        device=device,
        precision=precision,
        backends=backend or (),
        sizes=size or (),
        batches=batch or (),
        network=find_network(network) if network else None,
    )
    cells = [cell for cell in cells if cell.backend not in left_out]
    if not cells:
        raise BadInput(f"the suite {suite} has no cell for these options; choose others")
    weight_file = find_weights(weights)
    cells = with_weights(cells, weight_file)
    settings = Settings(
        out=out or (latest_out(suite) if resume else default_out(suite)),
        events=events,
        weights=weight_file.name if weight_file else "",
        repeats=repeats,
        rule=replace(StopRule(), budget=chosen.budget if budget is None else budget),
        seed=seed,
        threads=threads,
        timeout=timeout,
        resume=resume,
        command=command_line(),
    )
    cells = with_events(cells, events, needs_labels=chosen.needs_labels)
    console = progress_console()
    executor: Any = measure_locally
    machines: Machines = this_machine
    if dask is not None:
        from harness.run.cluster import dask_executor, dask_machines

        executor, machines = dask_executor(dask), dask_machines(dask)
    where: Any = {"executor": executor, "machines": machines}
    with checked_out(against) if against is not None else nullcontext(other) as beside:
        sides: Any = {"against": beside, "found_against": found_against}
        outs = measure(cells, settings, found, console, **sides, **where)
    for path in outs:
        console.print(f"records: {path}", highlight=False, soft_wrap=True)
    return outs
