"""Measures one cell in a process of its own: JSON in, JSON out.

A launcher speaks to a worker in lines of JSON. It asks three things: ``prepare`` (build, measure
memory, check against the truth, warm up), ``sample`` (take times for a while), as often as it
likes, so that several workers can take turns, and ``finish``. A worker that measures its cell in
one go asks itself the same.

Everything an engine prints goes to standard error: the answers have a channel of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import IO, Any

from harness.errors import BadInput
from harness.instruments.clock import Clock, CudaClock, HostClock
from harness.instruments.energy import EnergyCounter, NvmlEnergy, RaplEnergy, joules_an_event
from harness.instruments.gpu import (
    NoGpu,
    conditions,
    facts,
    find_device,
    open_nvml,
    throttle_reasons,
)
from harness.instruments.memory import (
    MemoryInstrument,
    NvmlMemory,
    ResidentMemory,
    TorchMemory,
    measure,
    nvml_baselines,
)
from harness.run import sampling
from harness.run.job import Job

TURN_SECONDS = 0.1
"""How long a worker samples before the next one takes its turn."""

NVML_INTERVAL = 0.002
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "alloc_failed",
)


class Failed(Exception):
    """A measurement that ends without times.

    Attributes
    ----------
    outcome : str
        One of ``store.OUTCOMES``.
    reason : str
        Why, in one sentence.
    """

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


def classify(error: BaseException) -> Failed:
    """Turn whatever an engine raised into an outcome with its reason."""
    if isinstance(error, Failed):
        return error
    first = (str(error).strip().splitlines() or [""])[0]
    reason = f"{type(error).__name__}: {first}".rstrip(": ")
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return Failed("out-of-memory", reason)
    if isinstance(error, (ImportError, BadInput)) or type(error).__name__ in (
        "Unsupported",
        "UnknownBackend",
    ):
        return Failed("unavailable", first)
    return Failed("crashed", reason)


class Session:
    """One cell on its way from a job to the entries of a record.

    Attributes
    ----------
    record : dict
        What is known so far; it stands even if a later step fails.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.record: dict[str, Any] = {}
        self._host: list[float] = []
        self._device: list[float] = []
        self._warm_up: list[float] = []
        self._throttled: list[int] = []

    def load(self) -> None:
        """Find the instruments and load the events."""
        job = self.job
        self._confine()
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)) if not job.threads else job.threads)
        self._find_instruments(torch)
        from harness.run.workload import event_sites, load_batch

        self._batch, skipped = load_batch(job.cell, job.events)
        self.record |= {
            "sites": len(self._batch.sites),
            "event_sites": event_sites(self._batch),
            "skipped_empty": skipped,
        }

    def prepare(self) -> None:
        """Build the network, measure its memory, check its results, and warm it up.

        Raises
        ------
        Failed
            If the results are wrong or anything on the way breaks.
        """
        # The worker's memory is measured over what it holds after imports, inputs and weights.
        from harness.run.workload import subject_of

        job, cell = self.job, self.job.cell
        self._subject = subject_of(cell, self._batch)
        self.record["precision_readback"] = self._subject.backend.precision_readback()
        self.record["versions"][cell.backend] = self._subject.version
        start = time.perf_counter()
        self._first_call()
        seconds = time.perf_counter() - start
        if job.check:
            self._check()
        if cell.map != "first":
            self._measure_memory()
            self._warm(seconds)

    def sample(self, seconds: float) -> tuple[list[float], list[float]]:
        """Take samples for some seconds, at least one.

        Returns
        -------
        host, device : list of float
            The new samples, in order; no device times without a device clock.
        """
        if self.job.cell.map == "first":  # it was taken when it happened, and happens once
            return list(self._host), list(self._device)
        known = len(self._host)
        if known and self._host[-1] < seconds / 10:
            # Others have had the caches since this worker's last turn.
            self._warm_up.append(self._clock.time(self._call).host)
        start = time.perf_counter()
        before = self._throttle()
        while len(self._host) == known or time.perf_counter() - start < seconds:
            self._take()
        if before or self._throttle():
            self._throttled += range(known, len(self._host))
        return self._host[known:], self._device[known:]

    def finish(self) -> dict[str, Any]:
        """Measure the energy where there is a counter, and return the entries of the record."""
        stolen = self._stolen.share()
        self.record["conditions"] |= {
            "after": self._conditions(),
            "stolen": None if stolen is None else round(stolen, 4),
        }
        self.record["energy_joules"] = None
        if self._energy is not None and self.job.cell.map != "first":
            self.record["energy_joules"] = joules_an_event(
                self._awaited, self._energy, self.job.cell.batch
            )
        self.record |= {
            "host_seconds": [round(value, 9) for value in self._host],
            "device_seconds": [round(value, 9) for value in self._device] or None,
            "warm_up_seconds": [round(value, 9) for value in self._warm_up],
            "outliers": sampling.outliers(self._host),
            "throttled": self._throttled,
        }
        return self.record

    def _confine(self) -> None:
        """Keep to the processors and the memory that the job allows."""
        self.record["memory"] = {"limit_bytes": self.job.memory_bytes or None}
        if self.job.processors:
            os.sched_setaffinity(0, self.job.processors)
        if self.job.memory_bytes:
            # The data limit counts memory that the process may write, not mapped libraries.
            limit = self.job.memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def _find_instruments(self, torch: Any) -> None:
        """Choose the instruments of the cell's device, and describe the machine."""
        from harness.instruments import machine

        on_gpu = self.job.cell.device == "cuda"
        self.record["machine"] = machine.facts() | {
            "threads": torch.get_num_threads(),
            "affinity": sorted(os.sched_getaffinity(0)),
        }
        self.record["versions"] = machine.versions() | {"torch": torch.__version__}
        self._nvml = self._handle = None
        self._synchronize: Callable[[], Any] = lambda: None
        self._clock: Clock = HostClock()
        self._energy: EnergyCounter | None = RaplEnergy()
        self._device_memory: list[MemoryInstrument] = []
        if on_gpu:
            if not torch.cuda.is_available():
                raise Failed("unavailable", "torch sees no CUDA device")
            self._nvml_instruments(torch)
            self._synchronize = torch.cuda.synchronize
            self._clock = CudaClock(torch.cuda)
            self._device_memory.append(TorchMemory(torch.cuda))
            self.record["versions"]["cuda"] = torch.version.cuda
        self.record["conditions"] = {"before": self._conditions()}
        self._stolen = machine.StolenTime()

    def _nvml_instruments(self, torch: Any) -> None:
        self._energy = None
        try:
            self._nvml = open_nvml()
            # Before torch touches the device: its context is memory that the engine needs too.
            baselines = nvml_baselines(self._nvml, os.getpid())
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            uuid = str(getattr(properties, "uuid", "")) or None
            self._handle = find_device(self._nvml, os.environ, uuid, torch.cuda.current_device())
        except NoGpu as error:
            self.record["machine"]["gpu"] = torch.cuda.get_device_name()
            self.record["machine"]["nvml"] = str(error)
            return
        self.record["machine"] |= facts(self._nvml, self._handle)
        self._energy = NvmlEnergy(self._nvml, self._handle)
        known = baselines.get(self.record["machine"]["gpu_uuid"])
        baseline = known or NvmlMemory.read(self._nvml, self._handle, os.getpid())
        self._device_memory.append(
            NvmlMemory(self._nvml, self._handle, os.getpid(), baseline, NVML_INTERVAL)
        )

    def _conditions(self) -> dict[str, Any]:
        found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
        if self._nvml is not None:
            found |= conditions(self._nvml, self._handle)
        return found

    def _throttle(self) -> bool:
        return self._nvml is not None and bool(throttle_reasons(self._nvml, self._handle))

    def _awaited(self) -> None:
        self._call()
        self._synchronize()

    def _take(self) -> None:
        found = self._clock.time(self._call)
        self._host.append(found.host)
        if found.device is not None:
            self._device.append(found.device)

    def _first_call(self) -> None:
        """Make the process's first call, under the watch of the kernel, which costs no time.

        Its peak of resident memory is the cell's: later calls reuse what the allocator kept. For
        a cell of the ``first`` map it is the sample, too.
        """
        first = self.job.cell.map == "first"

        def whole() -> None:
            self._call = self._subject.call()
            if first:
                self._take()
            else:
                self._awaited()

        self.record["memory"] |= ResidentMemory().watch(whole)

    def _measure_memory(self) -> None:
        """Watch one more call with each instrument of the device."""
        self.record["memory"] |= measure(self._awaited, self._device_memory)
        self._subject.reset()

    def _check(self) -> None:
        from harness.run.references import truth_of

        truth = truth_of(self.job) if self._subject.has_truth else None
        agreement, loss_error = self._subject.check(truth)
        found = asdict(agreement)
        reason = found.pop("reason")
        found |= {"loss_rel": loss_error, "statistics_rel_rmse": agreement.statistics_rel_rmse}
        self.record["error"] = {
            name: value if value is None or value < float("inf") else None
            for name, value in found.items()
        }
        allowed = self._subject.loss_tolerance()
        if not reason and loss_error is not None and not loss_error <= allowed:
            reason = f"relative error of the loss is {loss_error:.1e}, {allowed:.0e} is allowed"
        self.record |= self._subject.results()
        self._subject.reset()
        if reason:
            raise Failed("wrong", reason)

    def _warm(self, first_seconds: float) -> None:
        """Repeat the call until it gets no faster; slow calls were warm after the first."""
        start = time.perf_counter() - first_seconds
        while time.perf_counter() - start < self.job.warm_up:
            self._warm_up.append(self._clock.time(self._call).host)
            if sampling.warm(self._warm_up):
                break


def answers(commands: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Answer a launcher's commands, one each, until it asks to finish or something fails.

    An answer to ``prepare`` and ``sample`` holds the times; the answer to ``finish``, and any that
    has an ``outcome``, is the last. While it prepares it says what is ``known`` of the record
    before the engine has run: that stands even if it never answers.
    """
    session: Session | None = None
    try:
        for command in commands:
            if command["do"] == "prepare":
                session = Session(Job.from_json(command["job"]))
                session.load()
                yield {"known": dict(session.record)}
                session.prepare()
                yield {"ready": True, "record": session.record}
            elif session is None:
                raise BadInput("the first command must be 'prepare'")
            elif command["do"] == "sample":
                host, device = session.sample(command["seconds"])
                yield {"host": host, "device": device}
            else:
                yield {"outcome": "ok", "reason": "", "record": session.finish()}
                return
    except (Exception, SystemExit) as error:
        failed = classify(error)
        record = {} if session is None else session.record
        reason = failed.reason
        limit = record.get("memory", {}).get("limit_bytes")
        if failed.outcome == "out-of-memory" and limit:
            reason += f" (the worker's data was bound to {limit / 1e9:.3g} GB)"
        yield {"outcome": failed.outcome, "reason": reason, "record": record}


def in_one_go(job: Job) -> dict[str, Any]:
    """Measure a cell without a launcher, and return the entries of its record."""
    host: list[float] = []
    why: sampling.Stop | None = None
    pending: list[dict[str, Any]] = [{"do": "prepare", "job": job.to_json()}]

    def commands() -> Iterator[dict[str, Any]]:
        while pending:
            yield pending.pop(0)

    start = 0.0
    for answer in answers(commands()):
        if "known" in answer:
            continue
        if "outcome" in answer:
            return answer["record"] | {
                "outcome": answer["outcome"],
                "reason": answer["reason"],
                "stop": why,
            }
        if "ready" in answer:
            start = time.perf_counter()
        host += answer.get("host", [])
        once = job.cell.map == "first" and bool(host)
        why = "samples" if once else sampling.stop(host, time.perf_counter() - start, job.rule)
        pending.append({"do": "finish"} if why else {"do": "sample", "seconds": TURN_SECONDS})
    raise AssertionError("a worker's last answer has an outcome")


def private_output() -> IO[str]:
    """Keep standard output for the answers; what anything prints from now on goes to the error."""
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(kept, "w", buffering=1)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def serve(orders: IO[str], replies: IO[str]) -> None:
    """Answer a launcher on two channels of lines of JSON until it is done."""
    for answer in answers(json.loads(line) for line in orders):
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    die_with_parent()
    private_output().close()
    with os.fdopen(int(sys.argv[1])) as given, os.fdopen(int(sys.argv[2]), "w") as channel:
        serve(given, channel)
