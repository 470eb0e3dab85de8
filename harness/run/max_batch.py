"""The largest batch that fits into a given amount of memory, found by bisection over workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.instruments.machine import available_bytes
from harness.results.record import Entries, Measurement, ended
from harness.run.failures import Failed
from harness.run.job import Job
from harness.run.task import Task
from harness.run.turns import MEMORY_SHARE
from harness.run.worker_process import Worker, start_local
from harness.spec.metrics import memory_metric

OWN_BYTES = 4_000_000_000
"""Upper limit of what a worker maps for torch, its libraries and the allocator's arenas."""


@dataclass(frozen=True)
class Probe:
    """One batch that was tried, whether it fits, and the entries of its record."""

    batch: int
    fits: bool
    entries: Entries


def bisect_largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest batch that fits, 0 if not even one event does.

    The batch doubles until it no longer fits; then the interval is halved. ``fits`` must be
    monotonic. It is called about 2 log2(answer) times.

    Parameters
    ----------
    fits : callable
        Returns whether a batch fits.
    most : int
        The largest batch to try.
    """
    good, bad = 0, most + 1
    step = 1
    while step < bad:
        if not fits(step):
            bad = step
            break
        good = step
        step = min(2 * step, most) if step < most else bad
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def find_max_batch(
    task: Task,
    budget: int,
    most: int,
    on_probe: Callable[[Task, Probe], None],
    start: Callable[[Task], Worker] = start_local,
) -> int:
    """Find the largest batch of a task's cell that stays within a budget of memory.

    A batch fits if its call succeeds and its peak over the baseline is within the budget.

    Parameters
    ----------
    task : Task
        Its cell's batch is replaced.
    budget : int
        Bytes.
    most : int
        The largest batch to try.
    on_probe : callable
        Called after each batch that was tried.
    start : callable
        Starts a worker.
    """

    def fits(batch: int) -> bool:
        changed = replace(task, job=_job_of_batch(task, batch, budget))
        entries = measure_one_call(changed, start)
        value = memory_metric({"cell": {"device": task.job.cell.device}}).value(entries)
        good = entries["outcome"] == "ok" and value is not None and value <= budget
        on_probe(changed, Probe(batch, good, entries))
        return good

    return bisect_largest(fits, most)


def _job_of_batch(task: Task, batch: int, budget: int) -> Job:
    limit = 0
    if task.job.cell.device == "cpu":
        limit = min(budget + OWN_BYTES, int(MEMORY_SHARE * available_bytes()))
    return replace(
        task.job,
        cell=replace(task.job.cell, batch=batch),
        memory_bytes=limit,
        check=False,
        warm_up=0.0,
    )


def measure_one_call(task: Task, start: Callable[[Task], Worker]) -> Entries:
    """Make one call with the memory measured and one timed call; return the record's entries."""
    worker = start(task)
    entries: Measurement = {}
    try:
        for command in (
            {"do": "prepare", "job": task.job.to_json()},
            {"do": "sample", "seconds": 0.0},
            {"do": "finish"},
        ):
            answer = worker.request(command, task.timeout)
            entries |= answer.get("record", {})
            if "outcome" in answer:
                entries["stop"] = "samples"
                return ended(entries, answer["outcome"], answer["reason"])
    except Failed as failed:
        return ended(entries, failed.outcome, failed.reason)
    finally:
        worker.close()
    raise AssertionError("a worker's last answer has an outcome")
