"""Command line: ``python -m harness …``."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness import store
from harness.errors import BadInput

app = typer.Typer(
    name="harness",
    help="Measure sparse-convolution engines on liquid-argon events, and say which to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ELSEWHERE = {
    "compare": ("harness.compare", "one run: engines side by side; two runs: what changed"),
    "history": ("harness.history", "every stored run over commits, with the steps found"),
    "profile": ("harness.profile.cli", "where a cell's time and memory go, layer by layer"),
    "study": ("harness.study.cli", "the 2018 study, with this machine's numbers beside"),
    "events": ("harness.events.cli", "info, view, simulate, fetch, convert"),
    "asv": ("harness.asv.command", "asv with this machine's facts filled in"),
    "weights": ("backends.cli", "convert trained weights"),
}
"""Commands that live in modules of their own, imported when they are called.

A module offers a Typer application ``app``, or a function of the command's name.
"""


def _console() -> Console:
    return Console(stderr=False)


@app.command()
def backends(
    timeout: Annotated[float, typer.Option(help="Seconds that an engine has to answer.")] = 60.0,
) -> None:
    """Show what can run here, on which device, with what precision; the reason where not."""
    from backends.registry import names, probe_all
    from backends.table import absences, engines_table

    answers = {found.name: found for found in probe_all(timeout=timeout)}
    ordered = [answers[name] for name in names()]
    console = _console()
    console.print(engines_table(ordered))
    console.print("not here:", *absences(ordered), sep="\n  ", markup=False, soft_wrap=True)


@app.command()
def suites() -> None:
    """Show the suites, their question and their number of cells."""
    from harness.suite import find_suites

    table = Table("suite", "question", "cells")
    for suite in find_suites().values():
        table.add_row(suite.name, suite.question, str(len(suite.cells())))
    _console().print(table)


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="As `suites` lists them.")],
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this engine: NAME or NAME:OPTION=VALUE.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Only images of this size.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where an engine has it.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16.")] = "fp32",
    batch: Annotated[
        list[int] | None, typer.Option(help="Events a call, instead of the suite's.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, each in new processes.", min=1)] = 1,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds of sampling for a cell in a round, at most.", min=0.01),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of records; a new one under results/runs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out, or with the suite's latest run.")
    ] = False,
    events: Annotated[str, typer.Option(help="A file of events, or 'sample'.")] = "sample",
    against: Annotated[
        str | None, typer.Option(help="A commit to measure in turns with this code.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="A scheduler's address, or local:N for N devices here.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads a worker; 0: all processors.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the order of cells and turns.")] = 0,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a worker may take for one answer.")
    ] = 900.0,
) -> None:
    """Measure a suite, and write a record for each cell."""
    from backends.registry import module_name, probe_all
    from harness.plan import with_events
    from harness.run import Settings, default_out, in_turn, latest_out
    from harness.run import run as measure
    from harness.sampling import StopRule
    from harness.suite import ENGINES, find_suite, parse_engine

    chosen = find_suite(suite)
    engines = [parse_engine(text)[0] for text in backend or ENGINES]
    for name in engines:
        module_name(name)
    found = {answer.name: answer for answer in probe_all(dict.fromkeys(engines))}
    if device is None:
        capable = [answer.capabilities for answer in found.values() if answer.capabilities]
        device = "cuda" if any("cuda" in can.devices for can in capable) else "cpu"
    cells = chosen.cells(
        device=device,
        precision=precision,
        backends=backend or (),
        sizes=size or (),
        batches=batch or (),
    )
    if not cells:
        raise BadInput(f"the suite {suite} has no cell for these options; choose others")
    settings = Settings(
        out=out or (latest_out(suite) if resume else default_out(suite)),
        events=events,
        repeats=repeats,
        rule=replace(StopRule(), budget=chosen.budget if budget is None else budget),
        seed=seed,
        threads=threads,
        timeout=timeout,
        resume=resume,
    )
    cells = with_events(cells, events)
    console = _console()
    executor: Any = in_turn
    if dask is not None:
        from harness.cluster import dask_executor

        executor = dask_executor(dask)
    if against is None:
        outs = measure(cells, settings, found, console, executor=executor)
    else:
        from harness.against import checked_out

        with checked_out(against) as code:
            outs = measure(cells, settings, found, console, against=code, executor=executor)
    for path in outs:
        console.print(f"records: {path}", highlight=False, soft_wrap=True)


@app.command()
def boundary(
    memory: Annotated[float, typer.Argument(help="Memory that a call may take, in GB.", min=0.001)],
    backend: Annotated[list[str] | None, typer.Option(help="Only this engine.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Only images of this size.")] = None,
    phase: Annotated[str, typer.Option(help="forward or step.")] = "step",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp64, fp32, tf32, fp16 or bf16.")] = "fp32",
    most: Annotated[int, typer.Option(help="The largest batch to try.", min=1)] = 256,
    events: Annotated[str, typer.Option(help="A file of events, or 'sample'.")] = "sample",
    out: Annotated[Path | None, typer.Option(help="File of records, one a try.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 900.0,
) -> None:
    """Find the largest batch at each size that fits into a given amount of memory."""
    from backends.registry import interpreter, probe_all
    from harness import boundary as search
    from harness.cell import SIZES
    from harness.job import Job
    from harness.launch import Code, Task
    from harness.plan import obstacle, with_events
    from harness.progress import summary
    from harness.run import assemble, default_out
    from harness.suite import ENGINES, Grid, Suite, parse_engine

    grid = Grid(sizes=SIZES, batches=(1,), phases=(phase,), maps=("cold",))
    suite = Suite("boundary", "How large a batch fits?", (grid,))
    cells = suite.cells(
        device=device, precision=precision, backends=backend or (), sizes=size or ()
    )
    engines = dict.fromkeys(parse_engine(text)[0] for text in backend or ENGINES)
    found = {answer.name: answer for answer in probe_all(engines)}
    path = out or default_out("boundary")
    code, identity = Code.here(), path.stem
    console = _console()
    table = Table("engine", "size", f"largest batch within {memory:g} GB")
    for cell in with_events(cells, events):
        reason = obstacle(cell, found[cell.backend])
        if reason:
            table.add_row(cell.engine, f"{cell.size} px", reason)
            continue

        def tried(task: Task, probe: search.Probe) -> None:
            record = assemble(task, probe.entries, identity, 0)
            store.append(path, record)
            fits = "fits" if probe.fits else "does not fit"
            text = f"{task.job.cell.title}: {fits}: {summary(record)}"
            console.print(text, highlight=False, soft_wrap=True)

        task = Task(Job(cell, events), 0, code, interpreter(cell.backend), timeout)
        batch = search.search(task, int(memory * 1e9), most, tried)
        more = " or more" if batch == most else ""
        table.add_row(cell.engine, f"{cell.size} px", f"{batch}{more}")
    console.print(table)


@app.command()
def worker(
    file: Annotated[Path, typer.Argument(help="A cell, or a job, as JSON; - for the input.")],
) -> None:
    """Measure one cell in this process, and print the entries of its record as JSON."""
    from harness.job import Job
    from harness.worker import in_one_go, private_output

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        job = Job.from_json(json.loads(text))
    except OSError as error:
        raise BadInput(f"cannot read the cell {file}: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} is not JSON: {error}") from None
    channel = private_output()
    channel.write(json.dumps({"cell": job.cell.to_json()} | in_one_go(job)) + "\n")
    channel.flush()


def _mount(arguments: list[str]) -> None:
    """Add the commands of other modules: the called one for real, the others by their help."""
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, text) in ELSEWHERE.items():
        if name != called:
            app.command(name, help=text)(lambda: None)
            continue
        found: Any = importlib.import_module(module)
        if hasattr(found, "app"):
            app.add_typer(found.app, name=name, help=text)
        else:  # a module of one command, which is a function of its name
            settings = getattr(found, "CONTEXT", None)
            app.command(name, help=text, context_settings=settings)(getattr(found, name))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends it with one sentence and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _one_line
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the workers first, too
    try:
        _mount(given)
        app(given, prog_name="python -m harness")
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from here", file=sys.stderr)
        sys.exit(130)


def _is_bad_input(error: ValueError) -> bool:
    """Errors of users: ours, and those that engines raise on purpose."""
    from backends.capabilities import Unsupported
    from backends.registry import UnknownBackend

    return isinstance(error, (BadInput, Unsupported, UnknownBackend))


def _one_line(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, store.BadRecord):
        print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
