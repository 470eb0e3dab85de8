"""Profiles one cell in a process of its own: a job in, a profile out, as lines of JSON.

Passes are apart: times, trace, and memory never disturb each other.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.child_process import die_with_parent, private_output
from harness.instruments import machine
from harness.instruments.clock import Clock, CudaClock, HostClock
from harness.profile import memory, trace
from harness.profile.device import DeviceTicks, Nvtx, Recorded
from harness.profile.instrument import watching
from harness.profile.need import Needs, pyramid
from harness.profile.profile import Layer, MemoryProfile, Profile
from harness.profile.ranges import HOST, Key, Pass, Ranges, Spent, spans, spent
from harness.run import sampling
from harness.run.failures import Failed, classify
from harness.run.job import Job
from harness.run.workload import Workload, load_batch

WARM_UP = 5.0
"""Seconds after which a warm-up ends although it has not settled."""

REPEATS = 3
"""Calls before the memory settles."""

RULE = sampling.StopRule(spread=0.01, least=7, most=100)


@dataclass(frozen=True)
class Settings:
    """How to profile.

    Attributes
    ----------
    out : str
        Folder for the trace.
    seconds : float
        Time for calls with and without ranges, in turns.
    code : mapping
        ``commit`` and ``dirty`` of what is profiled.
    """

    out: str
    seconds: float
    code: Mapping[str, Any]


class Session:
    """One cell on its way to a profile."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job, self._settings = job, settings
        threads = job.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        self._on_gpu = job.cell.device == "cuda"
        if self._on_gpu and not torch.cuda.is_available():
            raise Failed("unavailable", "torch sees no CUDA device")
        self._clock: Clock = CudaClock(torch.cuda) if self._on_gpu else HostClock()
        batch, _ = load_batch(job.cell, job.events)
        self._sites = batch.sites.numpy()
        self._subject = Workload(job.cell, batch)
        self._call = self._subject.call()

    def times(self) -> tuple[Profile, tuple[int, int] | None]:
        """Make all passes but those over the memory of the CPU.

        Returns
        -------
        profile : Profile
            Without memory on the CPU.
        resident : tuple of int, or None
            Bytes before a call and at its peak, on the CPU.

        Raises
        ------
        Failed
            If the cell's results are not finite.
        """
        cell = self._job.cell
        self._warm_up()
        plain, passes = self._time()
        layers = self._layers(merged([spent(noted) for noted in passes], plain))
        ceilings = self._ceilings()
        held, resident = None, None
        if self._on_gpu:
            held = memory.profile_cuda_memory(self._subject, self._call)
        else:
            resident = memory.resident_peak(self._subject, self._call)
        self._trace(passes[_middle(passes)])
        profile = Profile(
            cell=cell,
            code=self._settings.code,
            machine=self._machine(),
            versions=machine.versions()
            | {"torch": torch.__version__, cell.backend: self._subject.version},
            seconds=median(plain),
            instrumented_seconds=median(noted.times[-1] - noted.times[0] for noted in passes),
            layers=tuple(layers),
            ceilings=ceilings,
            memory=held,
        )
        return profile, resident

    def memory(self, known: tuple[int, int]) -> MemoryProfile:
        """Profile the memory on the CPU; ``return_freed_memory`` has to come before."""
        for _ in range(REPEATS):
            memory.return_freed_memory()  # an engine that is imported late may want it otherwise
            self._call()
        return memory.profile_resident_memory(self._subject, self._call, *known)

    def _machine(self) -> dict[str, Any]:
        found = machine.facts() | {
            "threads": torch.get_num_threads(),
            "affinity": sorted(os.sched_getaffinity(0)),
        }
        if self._on_gpu:
            found["gpu"] = torch.cuda.get_device_name()
        return found

    def _warm_up(self) -> None:
        """Call until it gets no faster, once with ranges, and look at the result."""
        times: list[float] = []
        start = time.perf_counter()
        while not sampling.has_settled(times):
            times.append(self._clock.time(self._call).host)
            if time.perf_counter() - start > WARM_UP:
                break
        agreement, _ = self._subject.check(None)
        if agreement.reason:
            raise Failed("wrong", agreement.reason)
        self._subject.reset()

    def _ranges(self) -> tuple[Ranges, Callable[[Pass], Pass]]:
        """Return ranges on the device's clock, and what resolves their passes."""
        number = torch.autograd._get_sequence_nr
        if not self._on_gpu:
            return Ranges(time.perf_counter, number), lambda noted: noted
        ticks = DeviceTicks(torch.cuda)
        return Ranges(ticks, number, Nvtx(torch.cuda.nvtx)), ticks.resolve

    def _time(self) -> tuple[list[float], list[Pass]]:
        """Time calls without and with ranges in turns; return the former, and as many passes."""
        ranges, resolve = self._ranges()
        plain: list[float] = []
        passes: list[Pass] = []

        def bare() -> None:
            sample = self._clock.time(self._call)
            plain.append(sample.host if sample.device is None else sample.device)

        def ranged() -> None:
            passes.append(resolve(note(self._subject, self._call, ranges)))

        ranged()
        passes.clear()
        rule = sampling.StopRule(RULE.spread, RULE.least, RULE.most, self._settings.seconds)
        gc.collect()
        gc.freeze()
        start = time.perf_counter()
        while not sampling.stop_reason(plain, time.perf_counter() - start, rule):
            for take in (bare, ranged) if len(plain) % 2 else (ranged, bare):
                take()
        gc.unfreeze()
        return plain, passes

    def _layers(self, typical: Mapping[Key, Spent]) -> list[Layer]:
        subject, cell = self._subject, self._job.cell
        grids = pyramid(self._sites, cell.model.depth)
        needs = Needs(
            subject.network,
            grids,
            dim=cell.dim,
            classes=cell.model.classes,
            item=_item(cell.precision),
            fused=getattr(subject.backend, "fused", ()),
        )
        return [layer(key, found, needs) for key, found in typical.items()]

    def _trace(self, noted: Pass) -> None:
        """Write the trace: the layers of a pass, and torch's operators in another."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        ranges = Ranges(announcer=Recorded(torch.profiler.record_function))
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            note(self._subject, self._call, ranges)
            if self._on_gpu:
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "operators.json")
            profiler.export_chrome_trace(str(file))
            exported = json.loads(file.read_text())
        trace.write(Path(self._settings.out), spans(noted), exported)

    def _ceilings(self) -> dict[str, Any]:
        from harness.profile import ceilings

        cell = self._job.cell
        return ceilings.measure(cell.precision, cell.device, torch.get_num_threads()).to_json()


def note(subject: Workload, call: Callable[[], Any], ranges: Ranges) -> Pass:
    """Make a call with ranges on it, and return what they noted."""
    with watching(subject, ranges):
        ranges.begin()
        call()
        return ranges.end()


def merged(passes: Sequence[Mapping[Key, Spent]], plain: Sequence[float]) -> dict[Key, Spent]:
    """Return what each range took in a typical pass, in the order of their first run.

    Each pass is held against the call without ranges beside it, so that a machine whose speed
    changes from second to second changes neither a range's share nor the sum of all. Shares are
    means over the middle half of the passes by their time over that call's: unlike medians of the
    ranges, which leave out every interruption wherever it fell, they sum to the whole. A range that
    a pass lacks took no time in it.

    Parameters
    ----------
    passes : sequence of mapping
        What each range spent.
    plain : sequence of float
        Seconds of the call beside each pass.
    """

    def over_plain(pair: tuple[Mapping[Key, Spent], float]) -> float:
        return sum(one.seconds for one in pair[0].values()) / pair[1]

    ordered = sorted(zip(passes, plain, strict=True), key=over_plain)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    keys = dict.fromkeys(key for found, _ in middle for key in found)
    nothing, whole = Spent(0.0, 0), median(plain)
    return {
        key: Spent(
            whole
            * sum(found.get(key, nothing).seconds / own for found, own in middle)
            / len(middle),
            max(found.get(key, nothing).calls for found, _ in middle),
        )
        for key in keys
    }


def layer(key: Key, found: Spent, needs: Needs) -> Layer:
    """Return the entry of a profile for a range."""
    need = needs.of(key)
    name, kind, direction = key
    level = None if name == HOST else need.level
    return Layer(
        name, level, kind, direction, found.calls, found.seconds, need.bytes, need.flops, need.sites
    )


def _middle(passes: Sequence[Pass]) -> int:
    """Return the pass whose time is the median."""
    lengths = [noted.times[-1] - noted.times[0] for noted in passes]
    return sorted(range(len(passes)), key=lengths.__getitem__)[len(passes) // 2]


def _item(precision: str) -> int:
    """Return the bytes of a number in the rows."""
    return {"fp64": 8, "fp16": 2, "bf16": 2}.get(precision, 4)


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """Profile what an order asks for: the memory, if it says what is resident, or all else."""
    try:
        settings = Settings(**order["settings"])
        known = order.get("resident")
        if known is not None:
            memory.return_freed_memory()
        session = Session(Job.from_json(order["job"]), settings)
        if known is not None:
            return {"outcome": "ok", "memory": asdict(session.memory(tuple(known)))}
        profile, resident = session.times()
        return {"outcome": "ok", "profile": profile.to_json(), "resident": resident}
    except (Exception, SystemExit) as error:
        failed = classify(error)
        if failed.outcome == "crashed":
            import traceback

            traceback.print_exc()
        return {"outcome": failed.outcome, "reason": failed.reason}


if __name__ == "__main__":
    die_with_parent()
    private_output().close()
    with os.fdopen(int(sys.argv[1])) as orders, os.fdopen(int(sys.argv[2]), "w") as replies:
        replies.write(json.dumps(answer(json.loads(orders.readline()))) + "\n")
