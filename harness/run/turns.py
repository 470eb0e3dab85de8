"""Measurement of cells in turns: their workers stay alive, and one of them computes at a time.

Cells that answer the same question are sampled in short alternating turns, so that a change in the
machine's speed affects all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.instruments import machine
from harness.results.record import Entries, Measurement, Outcome, ended
from harness.run import sampling
from harness.run.failures import Failed
from harness.run.job import Job
from harness.run.task import ProgressListener, Task
from harness.run.worker_process import Worker, start_local

MEMORY_SHARE = 0.8
"""Part of the available memory that a worker on the CPU may use for its data."""


@dataclass
class _ActiveTask:
    """A task whose worker is alive.

    Attributes
    ----------
    partial : Measurement
        Entries of the record after ``prepare``.
    samples, device : list of float
        Host and device times so far, in seconds.
    elapsed : float
        Time spent on sampling, in seconds.
    turns : list of int
        Number of samples of each turn.
    enough : str or None
        Why the sampling may stop.
    stopped : bool
        Whether somebody else ended the worker.
    """

    task: Task
    worker: Worker
    partial: Measurement
    samples: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    turns: list[int] = field(default_factory=list)
    enough: sampling.Stop | None = None
    stopped: bool = False

    def take_turn(self) -> Entries | None:
        """Take samples for one turn; return the entries of the record if that failed."""
        start = time.monotonic()
        command = {"do": "sample", "seconds": sampling.TURN_SECONDS}
        answer = self.worker.request(command, self.task.timeout)
        self.elapsed += time.monotonic() - start
        self.turns.append(len(answer.get("host", ())))
        if "outcome" in answer:
            return final_entries(answer)
        self.samples += answer["host"]
        self.device += answer["device"]
        self.enough = self.enough or sampling.stop_reason(
            self.samples, self.elapsed, self.task.job.rule
        )
        return None

    def finish(self) -> Entries:
        """Return the entries of the record."""
        answer = self.worker.request({"do": "finish"}, self.task.timeout)
        return {**final_entries(answer), "stop": self.enough}

    def attempt(self, action: Callable[[], Entries | None]) -> Entries | None:
        """Call an action; if it fails, return the entries with the samples taken before."""
        try:
            return action()
        except Failed as failed:
            self.stopped = failed.stopped
            so_far: Measurement = {
                "host_seconds": self.samples,
                "device_seconds": self.device or None,
            }
            return ended({**self.partial, **so_far}, failed.outcome, failed.reason)


def final_entries(answer: Mapping[str, Any]) -> Entries:
    """Return the entries of a record from a worker's last answer."""
    return ended(answer["record"], answer["outcome"], answer["reason"])


def measure_in_turns(
    tasks: Sequence[Task],
    seed: int,
    listener: ProgressListener,
    start: Callable[[Task], Worker] = start_local,
    *,
    again: bool = False,
) -> Iterator[tuple[Task, Entries]]:
    """Measure tasks in turns, and yield the entries of each record when they are complete.

    A task whose worker somebody else has ended is measured once more, by itself. Two versions of
    one cell are sampled until both have enough samples, so that a slow period of the machine
    affects both.

    Parameters
    ----------
    tasks : sequence of Task
        Tasks that answer the same question.
    seed : int
        Seed of the order of turns.
    listener : ProgressListener
        Receives the samples.
    start : callable
        Starts a worker.
    again : bool
        Whether the tasks are measured once more.
    """
    if tasks and tasks[0].job.cell.map == "first":
        yield from _measure_first_calls(tasks, seed, listener, start)
        return
    active: list[_ActiveTask] = []
    retries: list[Task] = []
    try:
        for task in sampling.turn_order(tasks, seed, 0):
            prepared = _prepare(task, start)
            if isinstance(prepared, _ActiveTask):
                active.append(prepared)
            elif prepared.stopped and not again:
                retries.append(task)
            elif prepared.outcome == "out-of-memory" and active:
                retries.append(task)  # others held memory: it is tried again without them
            else:
                yield task, prepared.entries
        turn = 0
        while active:
            complete: list[tuple[_ActiveTask, Entries]] = []
            for each in sampling.turn_order(active, seed, turn):
                entries = each.attempt(each.take_turn)
                if entries is None:
                    listener.sampled(each.task, each.samples)
                else:
                    complete.append((each, entries))
            failed = [each for each, _ in complete]
            unfinished = {a.task.job.cell for a in active if a not in failed and not a.enough}
            for each in active:
                if each not in failed and each.task.job.cell not in unfinished:
                    complete.append((each, each.attempt(each.finish) or ended({}, "crashed")))
            for each, entries in complete:
                each.worker.close()
                active.remove(each)
                if each.stopped and not again:
                    retries.append(each.task)
                else:
                    yield each.task, {**entries, "turn_samples": each.turns}
            turn += 1
    finally:
        for each in active:
            each.worker.close()
    for task in retries:
        yield from measure_in_turns([task], seed, listener, start, again=True)


@dataclass(frozen=True)
class _Unprepared:
    """A task whose preparation failed: the entries of its record, and as for ``Failed``."""

    entries: Entries
    stopped: bool = False

    @property
    def outcome(self) -> Outcome:
        return self.entries["outcome"]


def _prepare(task: Task, start: Callable[[Task], Worker]) -> _ActiveTask | _Unprepared:
    """Start a worker and prepare it."""
    task = replace(task, job=_with_memory_limit(task.job))
    try:
        worker = start(task)
    except Failed as failed:
        return _Unprepared(ended({}, failed.outcome, failed.reason))
    try:
        answer = worker.request({"do": "prepare", "job": task.job.to_json()}, task.timeout)
    except Failed as failed:
        worker.close()
        limit: Measurement = {"memory": {"limit_bytes": task.job.memory_bytes or None}}
        entries = ended({**limit, **worker.partial}, failed.outcome, failed.reason)
        return _Unprepared(entries, failed.stopped)
    except BaseException:
        worker.close()
        raise
    if "outcome" in answer:
        worker.close()
        return _Unprepared(final_entries(answer))
    return _ActiveTask(task, worker, answer["record"])


def _with_memory_limit(job: Job) -> Job:
    """Limit a job on the CPU to a share of the memory that is available now."""
    if job.cell.device != "cpu" or job.memory_bytes:
        return job
    return replace(job, memory_bytes=int(MEMORY_SHARE * machine.available_bytes()))


def _measure_first_calls(
    tasks: Sequence[Task],
    seed: int,
    listener: ProgressListener,
    start: Callable[[Task], Worker],
) -> Iterator[tuple[Task, Entries]]:
    """Measure first calls: each sample takes a process of its own."""
    found: dict[Task, list[Entries]] = {task: [] for task in tasks}
    for turn in range(sampling.LEAST_SAMPLES):
        for task in sampling.turn_order(list(found), seed, turn):
            # The reference is the same for every process: one comparison is enough.
            job = task.job if turn == 0 else replace(task.job, check=False)
            entries = _first_call(replace(task, job=job), start)
            if entries["outcome"] != "ok":
                del found[task]
                yield task, entries
                continue
            found[task].append(entries)
            listener.sampled(task, [s for each in found[task] for s in each["host_seconds"]])
    for task, several in found.items():
        yield task, _joined(several)


def _first_call(task: Task, start: Callable[[Task], Worker], *, again: bool = False) -> Entries:
    prepared = _prepare(task, start)
    if isinstance(prepared, _Unprepared):
        stopped, entries = prepared.stopped, prepared.entries
    else:
        try:
            return prepared.finish()
        except Failed as failed:
            stopped = failed.stopped
            entries = ended(prepared.partial, failed.outcome, failed.reason)
        finally:
            prepared.worker.close()
    return _first_call(task, start, again=True) if stopped and not again else entries


def _joined(found: Sequence[Entries]) -> Entries:
    """Join the records of several processes that took one sample each."""
    host = [sample for each in found for sample in each["host_seconds"]]
    device = [sample for each in found for sample in each["device_seconds"] or []]
    return {
        **found[0],
        "host_seconds": host,
        "device_seconds": device or None,
        "outliers": sampling.outliers(host),
        "stop": "samples",
    }
