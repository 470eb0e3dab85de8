"""``python -m harness profile``: one cell, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from harness.errors import BadInput
from harness.profile.profile import Profile, memory_from_json, write_profile
from harness.results import store
from harness.run.job import Job
from harness.run.source import EngineSource
from harness.spec.cell import RANDOM, TRAINED, Cell, EventSpec
from harness.spec.network import HELP as NETWORK_HELP
from harness.spec.network import find_network
from harness.terminal import table_console


def profile(
    backend: Annotated[str, typer.Option(help="The engine: NAME or NAME:OPTION=VALUE.")],
    size: Annotated[int, typer.Option(help="Voxels per side of the events.")],
    batch: Annotated[int, typer.Option(help="Events per call.")],
    phase: Annotated[str, typer.Option(help="forward or step.")] = "step",
    map_: Annotated[
        str, typer.Option("--map", help="cold: maps are built in the call; warm: they are not.")
    ] = "cold",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16.")] = "fp32",
    events: Annotated[str, typer.Option(help="A file of events, or 'sample'.")] = "sample",
    network: Annotated[str, typer.Option(help=NETWORK_HELP)] = "study",
    weights: Annotated[
        str, typer.Option(help="trained, random, or an .npz file of a network's weights.")
    ] = TRAINED,
    env: Annotated[
        str | None,
        typer.Option(help="An installed engine NAME@VERSION, or the path of a Python to use."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0: all processors.", min=0)] = 0,
    seconds: Annotated[
        float, typer.Option(help="Time for calls, alternately with and without ranges.", min=0.01)
    ] = 20.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the profile; a new one under results/profiles.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the passes of one process.")] = 900.0,
) -> None:
    """Show the time and memory of each layer of a cell, beside the limits of the machine."""
    from backends.registry import module_name, probe
    from harness.run.against import environment_source
    from harness.run.plan import unavailable_reason, with_events, with_weights
    from harness.run.weight_files import find_weights
    from harness.spec.suite import TYPICAL_SEED, parse_engine

    name, options = parse_engine(backend)
    module_name(name)
    cell = Cell(
        suite="profile",
        backend=name,
        options=options,
        size=size,
        batch=batch,
        phase=phase,
        map=map_,
        device=device,
        precision=precision,
        model=find_network(network),
        events=EventSpec(seed=TYPICAL_SEED),
    )
    if cell.map == "first":
        raise BadInput("a first call occurs once and cannot be profiled; give --map cold or warm")
    if cell.phase not in ("forward", "step"):
        raise BadInput(f"only forward and step can be profiled, not {cell.phase}")
    cell = with_weights(with_events([cell], events), find_weights(weights))[0]
    code, only = environment_source(env) if env is not None else (EngineSource.here(), "")
    if only and name.partition("@")[0] != only:
        raise BadInput(f"{env} has {only} alone, not {name}")
    reason = unavailable_reason(cell, probe(name, python=code.python))
    if reason:
        raise BadInput(f"cannot profile {cell.engine}: {reason}")
    folder = out or new_folder(cell)
    used = "" if cell.weights == RANDOM else weights
    job = Job(cell, events, threads=threads, weights=used)
    found = profile_cell(job, folder, seconds, timeout, code)
    write_profile(found, folder)
    print_profile(found, folder, table_console())


def new_folder(cell: Cell, results: Path = store.RESULTS) -> Path:
    """Return a new folder under ``results/profiles``, named by the time and the cell."""
    words = (cell.backend, str(cell.size), f"x{cell.batch}", cell.phase, cell.map)
    return results / "profiles" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{'-'.join(words)}"


def profile_cell(
    job: Job, folder: Path, seconds: float, timeout: float, code: EngineSource | None = None
) -> Profile:
    """Profile a cell in a separate process that has the device to itself.

    Parameters
    ----------
    job : Job
        The cell.
    folder : Path
        Destination of the trace.
    seconds : float
        Time for calls with and without ranges.
    timeout : float
        Longest time for the passes of one process, in seconds.
    code : EngineSource, optional
        The engines; by default those beside this harness.

    Raises
    ------
    BadInput
        If the folder cannot be written to, or the engine fails or exceeds the time limit.
    """
    from backends.registry import interpreter
    from harness.run.failures import Failed
    from harness.run.locks import device_lock
    from harness.run.worker_process import LocalWorker

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot write to {folder} ({error.strerror}); give another folder with --out"
        ) from None
    code = code or EngineSource.here()
    python = code.python or interpreter(job.cell.backend)
    command = code.command(python, "harness.profile.child")
    request: dict[str, Any] = {
        "job": job.to_json(),
        "settings": {
            "out": str(folder.resolve()),
            "seconds": seconds,
            "code": {"commit": code.commit, "dirty": code.dirty},
        },
    }

    def send(more: dict[str, Any]) -> dict[str, Any]:
        """Send the request to a new process and return its answer."""
        child = LocalWorker(command, job.threads)
        try:
            answer = child.request(request | more, timeout)
        except Failed as failed:
            raise BadInput(f"cannot profile {job.cell.title}: {failed.reason}") from None
        finally:
            child.close()
        if answer["outcome"] != "ok":
            raise BadInput(f"cannot profile {job.cell.title}: {answer['reason']}")
        return answer

    with device_lock(job.cell.device, Console(stderr=True).print):
        answer = send({})
        found = Profile.from_json(answer["profile"])
        if answer["resident"] is None:
            return found
        memory = send({"resident": answer["resident"]})
    return replace(
        found,
        memory=memory_from_json(memory["memory"]),
    )


def print_profile(found: Profile, folder: Path, console: Console) -> None:
    """Print the tables and the paths of the files."""
    from harness.profile.page import write_profile_page
    from harness.profile.table import kinds_table, layers_table, memory_lines

    console.print(layers_table(found, width=console.width))
    console.print(kinds_table(found, width=console.width))
    lines = [
        f"layers and gaps sum to {found.layer_sum_ratio:.1%} of the cell's own time",
        *memory_lines(found),
    ]
    lines.append(f"page: {write_profile_page(folder, [found])}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
