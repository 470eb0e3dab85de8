"""Finds the largest batch that fits into a given amount of memory, by bisection over workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.instruments.machine import available_bytes
from harness.run import launch
from harness.run.launch import Failed, Task, Worker, start_local
from harness.spec.metrics import memory_metric

OWN_BYTES = 4_000_000_000
"""What a worker maps for itself (torch, its libraries, the allocator's arenas), at most."""


@dataclass(frozen=True)
class Probe:
    """One try: the batch, whether it fitted, and the entries of its record."""

    batch: int
    fits: bool
    entries: Mapping[str, Any]


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest batch that fits, 0 if not even one event does.

    The batch doubles until it no longer fits; then the interval is halved. ``fits`` must be
    monotonic: about 2 log2(answer) tries.

    Parameters
    ----------
    fits : callable
        Tries a batch.
    most : int
        The largest batch of interest.
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


def search(
    task: Task,
    budget: int,
    most: int,
    tried: Callable[[Task, Probe], None],
    start: Callable[[Task], Worker] = start_local,
) -> int:
    """Find the largest batch of a task's cell that stays within a budget of memory.

    A batch fits if its call ends well and its peak over the baseline is within the budget.

    Parameters
    ----------
    task : Task
        Its cell's batch is replaced.
    budget : int
        Bytes.
    most : int
        The largest batch to try.
    tried : callable
        Is told of every try.
    start : callable
        Starts a worker.
    """

    def fits(batch: int) -> bool:
        changed = replace(task, job=_sized(task, batch, budget))
        entries = one_call(changed, start)
        value = memory_metric({"cell": {"device": task.job.cell.device}}).value(entries)
        good = entries["outcome"] == "ok" and value is not None and value <= budget
        tried(changed, Probe(batch, good, entries))
        return good

    return largest(fits, most)


def _sized(task: Task, batch: int, budget: int) -> Any:
    limit = 0
    if task.job.cell.device == "cpu":
        limit = min(budget + OWN_BYTES, int(launch.MEMORY_SHARE * available_bytes()))
    return replace(
        task.job,
        cell=replace(task.job.cell, batch=batch),
        memory_bytes=limit,
        check=False,
        warm_up=0.0,
    )


def one_call(task: Task, start: Callable[[Task], Worker]) -> dict[str, Any]:
    """Let a worker make one watched and one timed call, and return the entries of its record."""
    worker = start(task)
    entries: dict[str, Any] = {}
    try:
        for command in (
            {"do": "prepare", "job": task.job.to_json()},
            {"do": "sample", "seconds": 0.0},
            {"do": "finish"},
        ):
            answer = worker.ask(command, task.timeout)
            entries |= answer.get("record", {})
            if "outcome" in answer:
                ends = {"outcome": answer["outcome"], "reason": answer["reason"]}
                return entries | ends | {"stop": "samples"}
    except Failed as failed:
        return entries | {"outcome": failed.outcome, "reason": failed.reason}
    finally:
        worker.close()
    raise AssertionError("a worker's last answer has an outcome")
