"""Sends cells to worker processes on this machine, and turns whatever happens to them into records.

Engines that answer the same question are measured together: their workers stay alive and take
turns, so that drift of the machine hits all alike. Only one of them computes at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from harness.instruments import machine
from harness.run import sampling
from harness.run.job import Job
from harness.run.worker import TURN_SECONDS, Failed

GRACE = 3.0
"""Seconds between asking a worker to end and killing it."""

MEMORY_SHARE = 0.8
"""Part of the available memory that a worker on the CPU may have for its data."""

_STDERR_KEPT = 4000


@dataclass(frozen=True)
class Code:
    """Which code a worker measures: the harness is this one, the engines may be another commit's.

    Attributes
    ----------
    root : Path
        The folder that holds the package ``backends``.
    commit : str
        Its commit, empty outside a repository.
    dirty : bool
        Whether files differ from that commit.
    """

    root: Path
    commit: str
    dirty: bool

    @classmethod
    def here(cls) -> Code:
        """Return the code that is running."""
        return cls(machine.ROOT, *machine.commit())

    @classmethod
    def imported(cls) -> Code:
        """Return the code whose engines this process imports.

        Inside an environment of asv that is the package ``backends`` of the commit that asv has
        installed there, and names in ``ASV_COMMIT``.
        """
        found = importlib.util.find_spec("backends")
        assert found is not None and found.origin is not None
        root = Path(found.origin).resolve().parent.parent
        if root == machine.ROOT:
            return cls.here()
        return cls(root, os.environ.get("ASV_COMMIT", ""), dirty=False)

    def command(self, python: str, module: str = "harness.run.worker") -> list[str]:
        """Return the start of the command line of a worker, or of another module.

        An editable installation answers imports before ``sys.path`` is asked: without its finder
        the packages come from ``root`` for certain.
        """
        start = (
            "import runpy, sys; "
            "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]"
            f"; sys.path[:0] = [{str(self.root)!r}, {str(machine.ROOT)!r}]; "
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )
        return [python, "-P", "-c", start]


@dataclass(frozen=True)
class Task:
    """A job with what its record says about the run.

    Attributes
    ----------
    job : Job
        What to measure, and how.
    round : int
        The round of the run, from 0.
    code : Code
        The code to measure.
    python : str
        The interpreter.
    timeout : float
        Seconds that the worker may take for one answer.
    """

    job: Job
    round: int
    code: Code
    python: str = sys.executable
    timeout: float = 900.0


class Watcher(Protocol):
    """Is told how the measuring goes."""

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """More samples of a cell have come in."""
        ...


class Worker(Protocol):
    """One process that measures one cell.

    Attributes
    ----------
    known : dict
        Entries of the record that it told before the engine ran.
    """

    known: dict[str, Any]

    def ask(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a command and wait for its answer; raise ``Failed`` if there is none."""
        ...

    def close(self) -> None:
        """End the process and everything that it started."""
        ...


class LocalWorker:
    """A worker process on this machine.

    Parameters
    ----------
    command : list of str
        Starts the worker; the numbers of its two channels are added.
    threads : int
        Threads for OpenMP and BLAS, 0 for one a processor that this process may use.

    Raises
    ------
    Failed
        ``unavailable`` if the process does not start.
    """

    def __init__(self, command: list[str], threads: int = 0) -> None:
        count = str(threads or len(os.sched_getaffinity(0)))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        orders, self._orders = os.pipe()
        self._replies, replies = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._oom_kills = _oom_kills()
        self._unread = b""
        self._closed = False
        self.known: dict[str, Any] = {}
        try:
            self._process = subprocess.Popen(
                [*command, str(orders), str(replies)],
                env=os.environ | dict.fromkeys(names, count),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(orders, replies),
                start_new_session=True,
            )
        except OSError as error:
            self._release()
            raise Failed("unavailable", f"its interpreter does not start: {error}") from None
        finally:
            os.close(orders)
            os.close(replies)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises
        ------
        Failed
            ``timeout`` if there is no answer in time, ``crashed`` if the worker died or answered
            something else, ``out-of-memory`` if it died of that.
        """
        if self._closed:
            raise Failed("crashed", "the worker was ended before")
        with contextlib.suppress(BrokenPipeError):  # its death is noticed when reading
            os.write(self._orders, json.dumps(command).encode() + b"\n")
        deadline = time.monotonic() + timeout
        answer = self._answer(deadline, timeout)
        while "known" in answer:
            self.known = answer["known"]
            answer = self._answer(deadline, timeout)
        return answer

    def _answer(self, deadline: float, timeout: float) -> dict[str, Any]:
        line = self._line(deadline)
        if line is None:
            self.close()
            raise Failed("timeout", f"gave no answer in {timeout:g} s and was killed")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            if not line:
                raise self._death()
            self.close()
            raise Failed("crashed", "the worker answered something that is not a JSON object")
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """Read one line; None if the time runs out, empty if the worker closed its channel."""
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                return None
            part = os.read(self._replies, 1 << 16)
            if not part:
                return b""
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _death(self) -> Failed:
        """Find out how the worker died."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.close()
            return Failed("crashed", "the worker closed its channel without an answer")
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - _STDERR_KEPT, 0))
        said = self._log.read().decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else ""
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return Failed("out-of-memory", "the kernel killed it because memory ran out")
        if code < 0:
            how = f"died of {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code} without an answer"
        outcome = "out-of-memory" if "bad_alloc" in said or "MemoryError" in said else "crashed"
        return Failed(outcome, f"{how}: {last}" if last else how)

    def close(self) -> None:
        """Ask the process group to end, and kill what is left of it after ``GRACE`` seconds."""
        if self._closed:
            return
        self._release()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _release(self) -> None:
        self._closed = True
        os.close(self._orders)
        os.close(self._replies)
        self._log.close()


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for memory since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def start_local(task: Task) -> Worker:
    """Start a worker for a task on this machine."""
    return LocalWorker(task.code.command(task.python), task.job.threads)


@dataclass
class _Runner:
    """A task whose worker is alive and takes turns.

    Attributes
    ----------
    turns : list of int
        Samples of each turn, in order.
    """

    task: Task
    worker: Worker
    partial: dict[str, Any]
    samples: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    turns: list[int] = field(default_factory=list)
    enough: sampling.Stop | None = None

    def turn(self) -> dict[str, Any] | None:
        """Take samples for one turn; return the entries of the record if the worker failed."""
        start = time.monotonic()
        command = {"do": "sample", "seconds": TURN_SECONDS}
        answer = self.worker.ask(command, self.task.timeout)
        self.elapsed += time.monotonic() - start
        self.turns.append(len(answer.get("host", ())))
        if "outcome" in answer:
            return answer["record"] | {"outcome": answer["outcome"], "reason": answer["reason"]}
        self.samples += answer["host"]
        self.device += answer["device"]
        self.enough = self.enough or sampling.stop(self.samples, self.elapsed, self.task.job.rule)
        return None

    def finish(self) -> dict[str, Any]:
        """Return the entries of the record."""
        answer = self.worker.ask({"do": "finish"}, self.task.timeout)
        ends = {"outcome": answer["outcome"], "reason": answer["reason"], "stop": self.enough}
        return answer["record"] | ends


def measure(
    tasks: Sequence[Task],
    seed: int,
    watcher: Watcher,
    start: Callable[[Task], Worker] = start_local,
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Measure some tasks, taking turns, and yield the entries of each record when it is ready.

    Two versions of one cell go on until both have enough samples: a machine that is slow for some
    seconds is then slow for both.

    Parameters
    ----------
    tasks : sequence of Task
        They answer the same question.
    seed : int
        Of the order in which they take turns.
    watcher : Watcher
        Is told of new samples.
    start : callable
        Starts a worker.
    """
    if tasks and tasks[0].job.cell.map == "first":
        yield from _measure_first(tasks, seed, watcher, start)
        return
    alive: list[_Runner] = []
    alone: list[Task] = []
    try:
        for task in sampling.turns(tasks, seed, 0):
            found = _prepare(task, start)
            if isinstance(found, _Runner):
                alive.append(found)
            elif found["outcome"] == "out-of-memory" and alive:
                alone.append(task)  # others held memory: it gets a second try without them
            else:
                yield task, found
        turn = 0
        while alive:
            ended: list[tuple[_Runner, dict[str, Any]]] = []
            for runner in sampling.turns(alive, seed, turn):
                entries = _attempt(runner, runner.turn)
                if entries is None:
                    watcher.sampled(runner.task, runner.samples)
                else:
                    ended.append((runner, entries))
            failed = [runner for runner, _ in ended]
            waiting = {r.task.job.cell for r in alive if r not in failed and not r.enough}
            for runner in alive:
                if runner not in failed and runner.task.job.cell not in waiting:
                    ended.append((runner, _attempt(runner, runner.finish) or {}))
            for runner, entries in ended:
                runner.worker.close()
                alive.remove(runner)
                yield runner.task, entries | {"turn_samples": runner.turns}
            turn += 1
    finally:
        for runner in alive:
            runner.worker.close()
    for task in alone:
        yield from measure([task], seed, watcher, start)


def _prepare(task: Task, start: Callable[[Task], Worker]) -> _Runner | dict[str, Any]:
    """Start a worker and prepare it; return the entries of a record if it comes to nothing."""
    task = replace(task, job=_bounded(task.job))
    try:
        worker = start(task)
    except Failed as failed:
        return {"outcome": failed.outcome, "reason": failed.reason}
    try:
        answer = worker.ask({"do": "prepare", "job": task.job.to_json()}, task.timeout)
    except Failed as failed:
        worker.close()
        limit = {"limit_bytes": task.job.memory_bytes or None}
        ends = {"outcome": failed.outcome, "reason": failed.reason}
        return {"memory": limit} | worker.known | ends
    except BaseException:
        worker.close()
        raise
    if "outcome" in answer:
        worker.close()
        return answer["record"] | {"outcome": answer["outcome"], "reason": answer["reason"]}
    return _Runner(task, worker, answer["record"])


def _attempt(runner: _Runner, what: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Let a runner do something; a failure ends it with the samples that it has."""
    try:
        return what()
    except Failed as failed:
        return runner.partial | {
            "outcome": failed.outcome,
            "reason": failed.reason,
            "host_seconds": runner.samples,
            "device_seconds": runner.device or None,
        }


def _bounded(job: Job) -> Job:
    """Bound a job on the CPU to a share of the memory that is available now."""
    if job.cell.device != "cpu" or job.memory_bytes:
        return job
    return replace(job, memory_bytes=int(MEMORY_SHARE * machine.available_bytes()))


def _measure_first(
    tasks: Sequence[Task], seed: int, watcher: Watcher, start: Callable[[Task], Worker]
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Measure first calls: each sample takes a process of its own."""
    found: dict[Task, list[dict[str, Any]]] = {task: [] for task in tasks}
    for turn in range(sampling.LEAST_SAMPLES):
        for task in sampling.turns(list(found), seed, turn):
            # The truth does not change from one process to the next: once is enough.
            job = task.job if turn == 0 else replace(task.job, check=False)
            entries = _first_call(replace(task, job=job), start)
            if entries["outcome"] != "ok":
                del found[task]
                yield task, entries
                continue
            found[task].append(entries)
            watcher.sampled(task, [s for each in found[task] for s in each["host_seconds"]])
    for task, several in found.items():
        yield task, _joined(several)


def _first_call(task: Task, start: Callable[[Task], Worker]) -> dict[str, Any]:
    runner = _prepare(task, start)
    if not isinstance(runner, _Runner):
        return runner
    try:
        return runner.finish()
    except Failed as failed:
        return runner.partial | {"outcome": failed.outcome, "reason": failed.reason}
    finally:
        runner.worker.close()


def _joined(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the records of several processes that took one sample each."""
    host = [sample for each in found for sample in each["host_seconds"]]
    device = [sample for each in found for sample in each["device_seconds"] or []]
    return found[0] | {
        "host_seconds": host,
        "device_seconds": device or None,
        "outliers": sampling.outliers(host),
        "stop": "samples",
    }
