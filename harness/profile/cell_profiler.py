"""Profiler of one cell in this process: times, memory and trace, each from separate calls."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.instruments import machine
from harness.instruments.clock import Clock, CudaClock, HostClock
from harness.profile import ceilings, memory, trace
from harness.profile.device import ProfilerListener
from harness.profile.instrument import bytes_per_number
from harness.profile.profile import LayerProfile, MemoryProfile, Profile
from harness.profile.ranges import (
    HOST,
    RangeKey,
    RangeRecorder,
    RecordedCall,
    SelfTime,
    self_times,
    spans,
)
from harness.profile.timing import median_call, record_call, time_calls, typical_self_times
from harness.profile.work import NetworkWork, level_sizes
from harness.run import sampling
from harness.run.failures import Failed
from harness.run.job import Job
from harness.run.workload import Workload, load_batch

WARM_UP = 5.0
"""Seconds after which the warm-up ends even if the times have not settled."""

MEMORY_WARM_UP = 3
"""Calls after which the memory has settled."""


@dataclass(frozen=True)
class Settings:
    """Settings of a profile.

    Attributes
    ----------
    out : str
        Folder for the trace.
    seconds : float
        Time for the calls with and without ranges, which alternate.
    code : mapping
        ``commit`` and ``dirty`` of the profiled code.
    """

    out: str
    seconds: float
    code: Mapping[str, Any]


class CellProfiler:
    """Profiler of one cell.

    Parameters
    ----------
    job : Job
        The cell, its events and the number of threads.
    settings : Settings
        Folder of the trace, and duration of the measurement.

    Raises
    ------
    Failed
        If the cell needs a GPU and torch finds none.
    """

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job, self._settings = job, settings
        torch.set_num_threads(job.threads or len(os.sched_getaffinity(0)))
        self._on_gpu = job.cell.device == "cuda"
        if self._on_gpu and not torch.cuda.is_available():
            raise Failed("unavailable", "torch finds no CUDA device")
        self._clock: Clock = CudaClock(torch.cuda) if self._on_gpu else HostClock()
        batch, _ = load_batch(job.cell, job.events)
        self._sites = batch.sites.numpy()
        self._workload = Workload(job, batch)
        self._call = self._workload.call()

    def profile(self) -> tuple[Profile, tuple[int, int] | None]:
        """Profile everything except the memory of the CPU.

        Returns
        -------
        profile : Profile
            Without memory on the CPU.
        resident : tuple of int, or None
            Resident bytes before a call and at its peak, on the CPU.

        Raises
        ------
        Failed
            If the cell's results are not finite.
        """
        cell = self._job.cell
        self._warm_up()
        network_work = self._network_work()
        plain, recorded = time_calls(
            self._workload, self._call, self._clock, self._settings.seconds
        )
        typical = typical_self_times([self_times(call) for call in recorded], plain)
        measured = ceilings.measure_ceilings(cell.precision, cell.device, torch.get_num_threads())
        found, resident = None, None
        if self._on_gpu:
            found = memory.profile_cuda_memory(self._workload, self._call)
        else:
            resident = memory.resident_peak(self._workload, self._call)
        self._write_trace(median_call(recorded))
        profile = Profile(
            cell=cell,
            code=self._settings.code,
            machine=self._machine(),
            versions=machine.versions()
            | {"torch": torch.__version__, cell.backend: self._workload.version},
            seconds=median(plain),
            instrumented_seconds=median(call.seconds for call in recorded),
            layers=tuple(layer_profile(key, time, network_work) for key, time in typical.items()),
            ceilings=measured.to_json(),
            memory=found,
        )
        return profile, resident

    def profile_memory(self, baseline: int, peak: int) -> MemoryProfile:
        """Profile the memory of the CPU, in a process where ``return_freed_memory`` was called.

        Parameters
        ----------
        baseline, peak : int
            Resident bytes before a call and at its peak in an ordinary process.
        """
        for _ in range(MEMORY_WARM_UP):
            memory.return_freed_memory()  # again: loading the engine may have changed it
            self._call()
        return memory.profile_resident_memory(self._workload, self._call, baseline, peak)

    def _machine(self) -> dict[str, Any]:
        found = machine.facts() | {
            "threads": torch.get_num_threads(),
            "affinity": sorted(os.sched_getaffinity(0)),
        }
        if self._on_gpu:
            found["gpu"] = torch.cuda.get_device_name()
        return found

    def _warm_up(self) -> None:
        """Call until the times have settled, and check the result of the last call."""
        times: list[float] = []
        start = time.perf_counter()
        while not sampling.has_settled(times):
            times.append(self._clock.time(self._call).host)
            if time.perf_counter() - start > WARM_UP:
                break
        agreement, _ = self._workload.check(None)
        if agreement.reason:
            raise Failed("wrong", agreement.reason)
        self._workload.reset()

    def _network_work(self) -> NetworkWork:
        workload, cell = self._workload, self._job.cell
        return NetworkWork(
            workload.network,
            level_sizes(self._sites, cell.model.depth),
            dim=cell.dim,
            classes=cell.model.classes,
            bytes_per_number=bytes_per_number(workload, self._call),
            fused=getattr(workload.backend, "fused", ()),
        )

    def _write_trace(self, recorded: RecordedCall) -> None:
        """Write the trace: the layers of a recorded call, and torch's operators in another call."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        ranges = RangeRecorder(listener=ProfilerListener(torch.profiler.record_function))
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            record_call(self._workload, self._call, ranges)
            if self._on_gpu:
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "operators.json")
            profiler.export_chrome_trace(str(file))
            exported = json.loads(file.read_text())
        trace.write_trace(Path(self._settings.out), spans(recorded), exported)


def layer_profile(key: RangeKey, time: SelfTime, network_work: NetworkWork) -> LayerProfile:
    """Return the entry of a profile for a range."""
    work = network_work.of(key)
    name, kind, direction = key
    level = None if name == HOST else work.level
    return LayerProfile(
        name, level, kind, direction, time.calls, time.seconds, work.bytes, work.flops, work.sites
    )
