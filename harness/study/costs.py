"""Measures the cells of a study in the run loop of the harness, each cell once.

Unlike the cells of a suite, these have different event files, and not all are checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from backends.registry import interpreter
from harness.results import store
from harness.results.record import Entries, Record
from harness.run.job import Job
from harness.run.plan import Availability
from harness.run.progress import RunProgress
from harness.run.rounds import measure_groups, write_record
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.spec.cell import Cell, Question
from harness.temporary import run_folder


def measure_costs(
    jobs: Sequence[Job],
    out: Path,
    found: Mapping[str, Availability],
    console: Console,
    *,
    timeout: float,
    seed: int = 0,
) -> None:
    """Measure the jobs whose cells a file of records does not hold.

    Parameters
    ----------
    jobs : sequence of Job
        Jobs with the same question take turns.
    out : Path
        File to which the records are appended.
    found : mapping
        Name of an engine -> its availability.
    console : Console
        Destination of the progress.
    timeout : float
        Maximum time for one answer of a worker in seconds.
    seed : int
        Seed of the order of turns.
    """
    done = {Cell.from_json(r["cell"]).name for r in store.records([out])} if out.exists() else set()
    todo = [job for job in jobs if job.cell.name not in done]
    source = EngineSource.here()
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-study"

    def write(task: Task, entries: Entries) -> Record:
        return write_record(out, task, entries, run, seed)

    with run_folder() as references, RunProgress(len(todo), console) as progress:
        groups: dict[Question, list[Task]] = defaultdict(list)
        for job in todo:
            job = replace(job, references=str(references))
            task = Task(job, 0, source, interpreter(job.cell.backend), timeout)
            groups[job.cell.question].append(task)
        measure_groups(list(groups.values()), found, seed, progress, write)
