"""One run: a suite's cells, in rounds, each measured and written down as a record."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from backends.registry import interpreter
from harness.errors import BadInput
from harness.results import store
from harness.run import launch
from harness.run.job import Job
from harness.run.launch import Code, Task, Watcher
from harness.run.plan import Availability, groups, obstacle
from harness.run.progress import RunProgress
from harness.run.sampling import StopRule
from harness.spec.cell import Cell

Measured = Iterator[tuple[Task, dict[str, Any]]]


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes
    ----------
    out : Path
        The file that the records go to.
    events : str
        ``sample`` or the path of a file of events.
    repeats : int
        Rounds; every round measures every cell in new processes.
    rule : StopRule
        When to stop sampling a cell in a round.
    seed : int
        Of the order of cells and turns.
    threads : int
        Threads of each worker; 0 for one a processor that is allowed.
    timeout : float
        Seconds that a worker may take for one answer.
    resume : bool
        Leave out what ``out`` holds already.
    """

    out: Path
    events: str = "sample"
    repeats: int = 1
    rule: StopRule = field(default_factory=StopRule)
    seed: int = 0
    threads: int = 0
    timeout: float = 900.0
    resume: bool = False


@dataclass(frozen=True)
class Side:
    """Code to measure, and the file of its records."""

    code: Code
    out: Path


class Executor(Protocol):
    """Measures groups of tasks, and yields the entries of each record when they are known."""

    def __call__(self, groups: Sequence[Sequence[Task]], seed: int, watcher: Watcher) -> Measured:
        """Measure all groups."""
        ...


def in_turn(groups: Sequence[Sequence[Task]], seed: int, watcher: RunProgress) -> Measured:
    """Measure the groups one after the other on this machine, alone on their device."""
    for group in groups:
        with device_lock(group[0].job.cell.device, watcher.say):
            watcher.started([task.job.cell for task in group])
            yield from launch.measure(group, seed + group[0].round, watcher)


@contextlib.contextmanager
def device_lock(
    device: str, say: Callable[[str], None], folder: Path | None = None
) -> Iterator[None]:
    """Hold a device for this process: two runs on one device would measure each other."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "cuda" else ""
    name = f"sscn-bench-{os.getuid()}-{device}-{visible.replace('/', '_')}.lock"
    with ((folder or Path(tempfile.gettempdir())) / name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is measuring on {device}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(
    cells: Sequence[Cell],
    settings: Settings,
    found: Mapping[str, Availability],
    console: Console,
    *,
    code: Code | None = None,
    against: Code | None = None,
    executor: Executor = in_turn,  # type: ignore[assignment]
    python: Callable[[str], str] = interpreter,
) -> list[Path]:
    """Measure cells and append a record for each, round by round.

    Parameters
    ----------
    cells : sequence of Cell
        With their events named.
    settings : Settings
        How to run.
    found : mapping
        What the probe found, by engine.
    console : Console
        Shows how it goes.
    code : Code, optional
        The engines to measure; those beside this harness by default.
    against : Code, optional
        Other code that is measured in turns with this one; its records go to a file beside.
    executor : callable
        Where to measure.
    python : callable
        The interpreter of an engine, by its name.

    Returns
    -------
    list of Path
        The files of records.
    """
    sides = [Side(code or Code.here(), settings.out)]
    if against is not None:
        sides.append(Side(against, beside(settings.out)))
    identity, seed, done = _begin(sides, settings)
    for side in sides:
        store.check_writable(side.out)
    with tempfile.TemporaryDirectory(prefix="sscn-bench-") as truths:
        todo = _tasks(cells, sides, settings, found, truths, seed, python)
        todo = [
            [task for task in group if (task.code, task.job.cell.name, task.round) not in done]
            for group in todo
        ]
        todo = [group for group in todo if group]
        total = sum(map(len, todo))
        outs = {side.code: side.out for side in sides}
        with RunProgress(total, console, other=against) as progress:
            if done:
                progress.say(f"{len(done)} records are there already, {total} to go")

            def write(task: Task, entries: Mapping[str, Any]) -> dict[str, Any]:
                record = assemble(task, entries, identity, seed)
                store.append(outs[task.code], record)
                return record

            possible = []
            for group in todo:
                able = []
                for task in group:
                    reason = obstacle(task.job.cell, found[task.job.cell.backend])
                    if reason:
                        record = write(task, {"outcome": "unavailable", "reason": reason})
                        progress.left_out(record)
                    else:
                        able.append(task)
                if able:
                    possible.append(able)
            for task, entries in executor(possible, seed, progress):
                progress.finished(write(task, entries), task.code)
    return [side.out for side in sides]


def beside(out: Path) -> Path:
    """Return the file for the records of the other code."""
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
    if not own:
        raise BadInput(f"there is no run of {suite} to go on with; start without --resume")
    return own[-1]


def _begin(
    sides: Sequence[Side], settings: Settings
) -> tuple[str, int, set[tuple[Code, str, int]]]:
    """Return the run's identity and seed, and what a resumed run has measured already."""
    done: set[tuple[Code, str, int]] = set()
    identity = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    seed = settings.seed
    if not settings.resume:
        return identity, seed, done
    for side in sides:
        if not side.out.exists():
            continue
        for record in store.records([side.out]):
            if record["commit"] != side.code.commit:
                raise BadInput(
                    f"{side.out} was measured at commit {record['commit'][:12] or '(none)'}, the "
                    f"code is at {side.code.commit[:12] or '(none)'}; start a new run"
                )
            identity, seed = record["run"], record.get("seed", seed)
            cell = Cell.from_json(record["cell"])
            done.add((side.code, cell.name, record.get("round", 0)))
    return identity, seed, done


def _tasks(
    cells: Sequence[Cell],
    sides: Sequence[Side],
    settings: Settings,
    found: Mapping[str, Availability],
    truths: str,
    seed: int,
    python: Callable[[str], str],
) -> list[list[Task]]:
    """List the tasks of all rounds in groups that take turns.

    What cannot run here is recorded once, not in every round.
    """
    listed = []
    for number in range(settings.repeats):
        able = [cell for cell in cells if number == 0 or not obstacle(cell, found[cell.backend])]
        for group in groups(able, seed, number):
            listed.append(
                [
                    Task(
                        job=Job(
                            cell=cell,
                            events=settings.events,
                            rule=settings.rule,
                            threads=settings.threads,
                            truth=truths,
                        ),
                        round=number,
                        code=side.code,
                        python=python(cell.backend),
                        timeout=settings.timeout,
                    )
                    for cell in group
                    for side in sides
                ]
            )
    return listed


def assemble(task: Task, entries: Mapping[str, Any], run: str, seed: int) -> dict[str, Any]:
    """Make a record of schema 1 from what a worker found out."""
    nothing: dict[str, Any] = {
        "sites": None,
        "host_seconds": [],
        "device_seconds": None,
        "stop": None,
        "memory": {},
        "energy_joules": None,
        "error": {},
        "precision_readback": {},
        "machine": {},
        "versions": {},
    }
    return {
        "schema": store.SCHEMA,
        "run": run,
        "utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": task.code.commit,
        "dirty": task.code.dirty,
        "round": task.round,
        "seed": seed,
        "cell": task.job.cell.to_json(),
        **nothing,
        **entries,
    }
