"""One run: the cells of a suite, measured in rounds, each with a record."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Protocol

from rich.console import Console

from harness.errors import BadInput
from harness.files import refuse_irregular
from harness.instruments import machine
from harness.results import store
from harness.results.record import Entries, Record, ended
from harness.run import turns
from harness.run.engine_interface import interpreter
from harness.run.forecast import Forecast
from harness.run.job import Job
from harness.run.locks import device_lock, file_lock
from harness.run.plan import Availability, groups, unavailable_reason
from harness.run.progress import RunProgress
from harness.run.resume import Machines, recorded_cells, this_machine
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import ProgressListener, Task
from harness.spec.cell import RANDOM, Cell
from harness.temporary import run_folder

MeasuredEntries = Iterator[tuple[Task, Entries]]
"""Tasks with the entries of their records, in order of completion."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes
    ----------
    out : Path
        File of the records.
    events : str
        ``sample`` or the path of a file of events.
    weights : str
        ``trained`` or the path of a file, for the cells that name one; empty if none does.
    repeats : int
        Number of rounds; each measures every cell in new processes.
    rule : StopRule
        When to stop sampling a cell in a round.
    seed : int
        Seed of the order of cells and turns.
    threads : int
        Threads of each worker; 0 for one per processor that is allowed.
    timeout : float
        Longest time to wait for one answer of a worker, in seconds.
    resume : bool
        Whether to leave out the cells that ``out`` holds.
    command : str
        The command line of the run, which the forecast varies; empty if there is none.
    """

    out: Path
    events: str = "sample"
    weights: str = ""
    repeats: int = 1
    rule: StopRule = field(default_factory=StopRule)
    seed: int = 0
    threads: int = 0
    timeout: float = 900.0
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class Side:
    """A source of engines, what they can do there, and the file of their records."""

    source: EngineSource
    found: Mapping[str, Availability]
    out: Path


class Executor(Protocol):
    """Measures groups of tasks, and yields the entries of each record when they are complete."""

    def __call__(
        self, groups: Sequence[Sequence[Task]], seed: int, listener: ProgressListener
    ) -> MeasuredEntries:
        """Measure all groups; tasks of one group take turns."""
        ...


def measure_locally(
    groups: Sequence[Sequence[Task]], seed: int, listener: RunProgress
) -> MeasuredEntries:
    """Measure the groups one after the other on this machine, with their device locked."""
    for group in groups:
        with device_lock(group[0].job.cell.device, listener.say):
            listener.started([task.job.cell for task in group])
            yield from turns.measure_in_turns(group, seed + group[0].round, listener)


def run(
    cells: Sequence[Cell],
    settings: Settings,
    found: Mapping[str, Availability],
    console: Console,
    *,
    source: EngineSource | None = None,
    against: EngineSource | None = None,
    found_against: Mapping[str, Availability] | None = None,
    executor: Executor = measure_locally,  # type: ignore[assignment]
    machines: Machines = this_machine,
    python: Callable[[str], str] = interpreter,
) -> list[Path]:
    """Measure cells and append a record for each, round by round.

    Parameters
    ----------
    cells : sequence of Cell
        With their events named.
    settings : Settings
        Settings of the run.
    found : mapping
        Name of an engine -> its availability.
    console : Console
        Destination of the progress.
    source : EngineSource, optional
        The engines to measure; by default those beside this harness.
    against : EngineSource, optional
        Other source, measured in turns with this one; its records go to ``against_path``.
    found_against : mapping, optional
        Name of an engine -> its availability there; by default as here.
    executor : callable
        Measures the tasks.
    machines : callable
        The machines on which the executor may measure; a resumed run compares them.
    python : callable
        Returns the interpreter of an engine.

    Returns
    -------
    list of Path
        The files of records.
    """
    sides = [Side(source or EngineSource.here(), found, settings.out)]
    if against is not None:
        sides.append(Side(against, found_against or found, against_path(settings.out)))
        found = _on_both(*sides)
    for side in sides:
        refuse_irregular(side.out)
        store.check_writable(side.out)
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.enter_context(file_lock(side.out))
        identity, seed, done = _begin(sides, settings, python, machines)
        references = stack.enter_context(run_folder())
        todo = _tasks(cells, sides, settings, found, str(references), seed, python)
        todo = [
            [task for task in group if (task.source, task.job.cell.name, task.round) not in done]
            for group in todo
        ]
        todo = [group for group in todo if group]
        total = sum(map(len, todo))
        outs = {side.source: side.out for side in sides}
        possible = [
            task.job.cell
            for task in chain.from_iterable(todo)
            if not unavailable_reason(task.job.cell, found[task.job.cell.backend])
        ]
        forecast = Forecast(settings.rule.budget, turns.MEMORY_SHARE * machine.available_bytes())
        with RunProgress(
            total,
            console,
            other=against,
            cost=forecast.seconds,
            work=sum(map(forecast.seconds, possible)),
        ) as progress:
            sentence = forecast.sentence(possible, settings.command)
            if sentence and executor is measure_locally:
                progress.say(sentence)
            if done:
                progress.say(f"{len(done)} records are there already, {total} to go")

            def write(task: Task, entries: Entries) -> Record:
                return write_record(outs[task.source], task, entries, identity, seed)

            measure_groups(todo, found, seed, progress, write, executor)
    return [side.out for side in sides]


def measure_groups(
    groups: Sequence[Sequence[Task]],
    found: Mapping[str, Availability],
    seed: int,
    progress: RunProgress,
    write: Callable[[Task, Entries], Record],
    executor: Executor = measure_locally,  # type: ignore[assignment]
) -> None:
    """Measure groups of tasks, and write a record of each task, available or not.

    Parameters
    ----------
    groups : sequence of sequence of Task
        Tasks of one group take turns.
    found : mapping
        Name of an engine -> its availability.
    seed : int
        Seed of the order of turns.
    progress : RunProgress
        Display.
    write : callable
        Appends and returns the record of a task with the given entries.
    executor : callable
        Measures the tasks.
    """
    possible = []
    for group in groups:
        able = []
        for task in group:
            reason = unavailable_reason(task.job.cell, found[task.job.cell.backend])
            if reason:
                progress.left_out(write(task, ended({}, "unavailable", reason)))
            else:
                able.append(task)
        if able:
            possible.append(able)
    for task, entries in executor(possible, seed, progress):
        progress.finished(write(task, entries), task.source)


def against_path(out: Path) -> Path:
    """Return the file for the records of the other source."""
    return out.with_suffix(f"{store.AGAINST}{out.suffix}")


def default_out(suite: str, results: Path = store.RESULTS) -> Path:
    """Return a new file under ``results/runs``, named by the time and the suite."""
    return results / "runs" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{suite}.jsonl"


def latest_out(suite: str, results: Path = store.RESULTS) -> Path:
    """Return the newest file of a suite under ``results/runs``.

    Raises
    ------
    BadInput
        If the suite was never run.
    """
    own = [path for path in store.stored(results) if path.name.endswith(f"-{suite}.jsonl")]
    found = store.newest(own)
    if found is None:
        raise BadInput(f"there is no run of {suite} to go on with; start without --resume")
    return found


@dataclass(frozen=True)
class _Absent:
    """The availability of an engine that cannot run."""

    reason: str
    capabilities: None = None


def _on_both(here: Side, other: Side) -> dict[str, Availability]:
    """Return what engines can do here, and which of them cannot run on the other side."""
    return {
        name: _Absent(f"{own.reason} ({other.source.label})")
        if own.capabilities is None and here.found[name].capabilities is not None
        else here.found[name]
        for name, own in other.found.items()
    }


def _begin(
    sides: Sequence[Side],
    settings: Settings,
    python: Callable[[str], str],
    machines: Machines,
) -> tuple[str, int, set[tuple[EngineSource, str, int]]]:
    """Return the run's identity and seed, and the cells that a resumed run has measured."""
    done: set[tuple[EngineSource, str, int]] = set()
    identity = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    seed = settings.seed
    if not settings.resume:
        return identity, seed, done
    for side in sides:
        cells, run, recorded_seed = recorded_cells(
            side.out,
            side.source,
            side.found,
            threads=settings.threads,
            budget=settings.rule.budget,
            machines=machines,
            python=python,
        )
        identity = run or identity
        seed = seed if recorded_seed is None else recorded_seed
        done |= {(side.source, name, number) for name, number in cells}
    return identity, seed, done


def _tasks(
    cells: Sequence[Cell],
    sides: Sequence[Side],
    settings: Settings,
    found: Mapping[str, Availability],
    references: str,
    seed: int,
    python: Callable[[str], str],
) -> list[list[Task]]:
    """Return the tasks of all rounds in groups that take turns.

    A cell that cannot run here is in the first round only.
    """
    listed = []
    for number in range(settings.repeats):
        able = [
            cell
            for cell in cells
            if number == 0 or not unavailable_reason(cell, found[cell.backend])
        ]
        for group in groups(able, seed, number):
            listed.append(
                [
                    Task(
                        job=Job(
                            cell=cell,
                            events=settings.events,
                            weights="" if cell.weights == RANDOM else settings.weights,
                            rule=settings.rule,
                            threads=settings.threads,
                            references=references,
                        ),
                        round=number,
                        source=side.source,
                        python=side.source.python or python(cell.backend),
                        timeout=settings.timeout,
                    )
                    for cell in group
                    for side in sides
                ]
            )
    return listed


def write_record(path: Path, task: Task, entries: Entries, run: str, seed: int) -> Record:
    """Append the record of a task to a file, and return it."""
    return store.append_record(
        path,
        task.job.cell,
        entries,
        run=run,
        commit=task.source.commit,
        dirty=task.source.dirty,
        environment=task.source.environment,
        seed=seed,
        round=task.round,
    )
