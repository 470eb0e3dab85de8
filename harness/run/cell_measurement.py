"""The measurement of one cell: instruments, first call, comparison with the reference, samples."""

from __future__ import annotations

import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from harness.errors import BadInput
from harness.instruments import allocator, machine
from harness.instruments.clock import Clock, CudaClock, HostClock
from harness.instruments.energy import EnergyCounter, NvmlEnergy, RaplEnergy, joules_per_event
from harness.instruments.gpu import (
    NoGpu,
    conditions,
    device_facts,
    find_device,
    open_nvml,
    throttle_reasons,
)
from harness.instruments.memory import (
    MemoryInstrument,
    NvmlMemory,
    ResidentMemory,
    TorchMemory,
    nvml_baselines,
    outside_torch,
)
from harness.results.record import Condition, Errors, Machine, Measurement, Memory
from harness.run import sampling
from harness.run.failures import Failed
from harness.run.job import Job

if TYPE_CHECKING:
    from torch import Tensor

    from harness.run.engine_interface import SparseBatch
    from harness.run.images import BatchImages
    from harness.run.references import Variant

NVML_INTERVAL = 0.002
"""Seconds between two readings of a GPU's memory."""

QUEUE_BYTES = 64_000_000
"""Memory for images that are prepared ahead of the calls; one is prepared in any case."""

WARM_UP_IMAGES = 8
"""Images that are prepared before the warm-up."""

ENERGY_IMAGES = 300
"""Images that take turns in the calls whose energy is measured."""


class CellMeasurement:
    """The measurement of one cell, from its job to the entries of its record.

    Attributes
    ----------
    record : dict
        Entries so far; they are kept even if a later step fails.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.record: Measurement = {}
        self._host: list[float] = []
        self._device: list[float] = []
        self._warm_up: list[float] = []
        self._throttled: list[int] = []
        self._images: BatchImages | None = None
        self._queue: deque[SparseBatch] = deque()
        self._first_labels: tuple[Tensor, Tensor] | None = None

    def load(self) -> None:
        """Set up the instruments and read the events."""
        job = self.job
        self._apply_limits()
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)) if not job.threads else job.threads)
        self._set_up_instruments(torch)
        from harness.run.workload import load_batch

        start = time.perf_counter()
        self._batch, skipped = load_batch(job.cell, job.events)
        self.record |= {
            "load_seconds": round(time.perf_counter() - start, 6),
            "budget_seconds": job.rule.budget,
            "sites": len(self._batch.sites),
            "skipped_empty": skipped,
        }

    def prepare(self) -> None:
        """Build the network, measure its memory, check its results, and warm it up.

        Raises
        ------
        Failed
            If the results are wrong.
        """
        # The baseline of the memory is what the worker holds after imports, inputs and weights.
        from harness.run.workload import build_workload

        job, cell = self.job, self.job.cell
        self._workload = build_workload(job, self._batch)
        self.record["precision_readback"] = self._workload.backend.precision_readback()
        self.record["versions"][cell.backend] = self._workload.version
        start = time.perf_counter()
        self._first_call()
        seconds = time.perf_counter() - start
        if job.check:
            self._check_first_call()
        if cell.map == "cold":
            from harness.run.images import BatchImages, coarsest_stride

            self._images = BatchImages(self._batch, coarsest_stride(cell), cell.events.seed)
        if cell.map != "first":
            self._measure_memory()
            self._warm(seconds)
            self.record["tuning_seconds"] = round(seconds + sum(self._warm_up), 6)

    def sample(self, seconds: float) -> tuple[list[float], list[float]]:
        """Take at least one sample, and more for a given duration.

        Parameters
        ----------
        seconds : float
            The duration.

        Returns
        -------
        host, device : list of float
            The new samples in order, in seconds; no device times without a device clock.
        """
        if self.job.cell.map == "first":  # the first call has been timed, and happens once
            return list(self._host), list(self._device)
        before = len(self._host)
        durations = self._host or self._warm_up
        if durations:
            self._prepare_images(math.ceil(seconds / max(durations[-1], 1e-6)) + 2)
        if before and self._host[-1] < seconds / 10:
            # Other workers have used the caches since this worker's last turn.
            self._present_image()
            self._warm_up.append(self._clock.time(self._call).host)
        start = time.perf_counter()
        throttled = self._is_throttled()
        while len(self._host) == before or time.perf_counter() - start < seconds:
            self._present_image()
            self._take_sample()
        if throttled or self._is_throttled():
            self._throttled += range(before, len(self._host))
        return self._host[before:], self._device[before:]

    def finish(self) -> Measurement:
        """Check the results again, measure the energy, and return the entries of the record.

        Raises
        ------
        Failed
            If the results are wrong.
        """
        stolen = self._stolen.share()
        self.record["conditions"] |= {
            "after": self._conditions(),
            "stolen": None if stolen is None else round(stolen, 4),
        }
        self.record["energy_joules"] = None
        if self._energy is not None and self.job.cell.map != "first":
            self.record["energy_joules"] = self._measure_energy(self._energy)
        if self.job.check and self.job.cell.map != "first":
            self._check_last_call()
        # Engines also report how their passes ran.
        self.record["precision_readback"] = self._workload.backend.precision_readback()
        if self.job.cell.events.count:
            self._label_events()
        self.record |= {
            "host_seconds": [round(value, 9) for value in self._host],
            "device_seconds": [round(value, 9) for value in self._device] or None,
            "outliers": sampling.outliers(self._host),
            "throttled": self._throttled,
        }
        return self.record

    def _apply_limits(self) -> None:
        """Restrict this process to the job's processors and memory."""
        self.record["memory"] = {"limit_bytes": self.job.memory_bytes or None}
        if self.job.processors:
            try:
                os.sched_setaffinity(0, self.job.processors)
            except OSError:
                listed = ", ".join(map(str, self.job.processors))
                raise BadInput(f"none of the processors {listed} may be used here") from None
        if self.job.memory_bytes:
            # The data limit counts memory that the process may write, not mapped libraries.
            limit = self.job.memory_bytes
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            if hard != resource.RLIM_INFINITY:
                limit = min(limit, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def _set_up_instruments(self, torch: Any) -> None:
        """Choose the instruments of the cell's device, and describe the machine."""
        on_gpu = self.job.cell.device == "cuda"
        self.record["machine"] = {
            **cast("Machine", machine.facts()),
            "threads": torch.get_num_threads(),
            "affinity": sorted(os.sched_getaffinity(0)),
        }
        self.record["versions"] = {**machine.versions(), "torch": torch.__version__}
        if allocator.policy():
            self.record["allocator"] = allocator.policy()
        self._nvml = self._handle = None
        self._synchronize: Callable[[], Any] = lambda: None
        self._clock: Clock = HostClock()
        self._energy: EnergyCounter | None = RaplEnergy()
        self._device_memory: list[MemoryInstrument] = []
        if on_gpu:
            if not torch.cuda.is_available():
                raise Failed("unavailable", "torch finds no CUDA device")
            self._set_up_nvml(torch)
            self._synchronize = torch.cuda.synchronize
            self._clock = CudaClock(torch.cuda)
            self._device_memory.append(TorchMemory(torch.cuda))
            self.record["versions"]["cuda"] = torch.version.cuda
        self.record["conditions"] = {"before": self._conditions()}
        self._stolen = machine.StolenTime()

    def _set_up_nvml(self, torch: Any) -> None:
        self._energy = None
        try:
            self._nvml = open_nvml()
            # Before torch creates its context, which is memory that the engine needs, too.
            baselines = nvml_baselines(self._nvml, os.getpid())
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            uuid = str(getattr(properties, "uuid", "")) or None
            self._handle = find_device(self._nvml, os.environ, uuid, torch.cuda.current_device())
        except NoGpu as error:
            self.record["machine"]["gpu"] = torch.cuda.get_device_name()
            self.record["machine"]["nvml"] = str(error)
            return
        self.record["machine"] |= cast("Machine", device_facts(self._nvml, self._handle))
        self._energy = NvmlEnergy(self._nvml, self._handle)
        own = baselines.get(self.record["machine"]["gpu_uuid"] or "")
        baseline = own or NvmlMemory.read(self._nvml, self._handle, os.getpid())
        self._device_memory.append(
            NvmlMemory(self._nvml, self._handle, os.getpid(), baseline, NVML_INTERVAL)
        )

    def _conditions(self) -> Condition:
        found: Condition = {"load": round(os.getloadavg()[0], 2)}
        if self._nvml is not None:
            found |= cast("Condition", conditions(self._nvml, self._handle))
        return found

    def _is_throttled(self) -> bool:
        return self._nvml is not None and bool(throttle_reasons(self._nvml, self._handle))

    def _synchronized_call(self) -> None:
        self._call()
        self._synchronize()

    def _take_sample(self) -> None:
        found = self._clock.time(self._call)
        self._host.append(found.host)
        if found.device is not None:
            self._device.append(found.device)

    def _first_call(self) -> None:
        """Make the first call of the process, and record its peak of resident memory.

        Later calls reuse memory that the allocator retains. The kernel records the peak at no
        cost, so that for a cell of the ``first`` map this call is also the sample.
        """
        first = self.job.cell.map == "first"

        def prepare_and_call() -> None:
            self._call = self._workload.call()
            if first:
                self._take_sample()
            else:
                self._synchronized_call()

        self.record["memory"] |= cast("Memory", ResidentMemory().measure(prepare_and_call))

    def _measure_memory(self) -> None:
        """Make one more call for each instrument of the device's memory."""
        for instrument in self._device_memory:
            self._present_image()
            self.record["memory"] |= cast("Memory", instrument.measure(self._synchronized_call))
        self.record["memory"] |= cast("Memory", outside_torch(self.record["memory"]))
        self._workload.reset()

    def _measure_energy(self, counter: EnergyCounter) -> float | None:
        """Repeat the call, on images in turns if the cell is cold; return joules per event."""
        self._prepare_images(ENERGY_IMAGES)

        def call() -> None:
            if self._queue:
                self._workload.replace_input(self._queue[0])
                self._queue.rotate(-1)
            self._synchronized_call()

        return joules_per_event(call, counter, self.job.cell.batch)

    def _prepare_images(self, number: int) -> None:
        """Prepare images for the next calls, as far as their memory allows."""
        if self._images is not None:
            most = max(1, QUEUE_BYTES // max(1, self._images.image_bytes))
            self._queue.extend(self._images.take(min(number, most) - len(self._queue)))

    def _present_image(self) -> None:
        """Replace the sites of a cold cell by those of an image; other cells keep theirs."""
        if not self._queue:
            self._prepare_images(1)
        if self._queue:
            self._workload.replace_input(self._queue.popleft())

    def _check_first_call(self) -> None:
        """Compare the results of the first call with the reference."""
        from harness.run.workload import Workload

        reason = self._compare("")
        if self.job.cell.events.count:
            assert isinstance(self._workload, Workload)
            self._first_labels = self._workload.last_labels()
        self._workload.reset()
        if reason:
            raise Failed("wrong", reason)

    def _check_last_call(self) -> None:
        """Compare the results of one more call, on an input that was not checked before.

        A cold cell gets new sites, a warm one new features. An engine that returns what belongs to
        an earlier call fails here.
        """
        from harness.run.references import last_variant, variant_batch

        cell = self.job.cell
        variant = last_variant(cell)
        batch = self._images.check if self._images else variant_batch(cell, self._batch, variant)
        self._workload.reset()
        self._workload.replace_input(batch)
        self._call = self._workload.call()
        self._synchronized_call()
        reason = self._compare(variant)
        if reason:
            what = "sites" if variant == "image" else "features"
            raise Failed(
                "wrong",
                f"the first check passed, the last one, with other {what}, failed: {reason}",
            )

    def _label_events(self) -> None:
        """Label the events of the cell, for an accuracy over more events than a batch."""
        from harness.run.label_stream import label_events
        from harness.run.references import load_reference
        from harness.run.workload import Workload

        workload, job = self._workload, self.job
        assert isinstance(workload, Workload)
        has_reference = job.check and workload.has_reference
        reference = load_reference(job, "events") if has_reference else None
        found = label_events(
            workload, job.events, reference, job.rule.budget, self._first_labels, self._host[-1]
        )
        if found is not None:
            self.record["accuracy"] = found

    def _compare(self, variant: Variant) -> str:
        """Compare the results of the last call with a reference; return why they are wrong."""
        from harness.run.references import load_reference

        reference = load_reference(self.job, variant) if self._workload.has_reference else None
        agreement, loss_error = self._workload.check(reference)
        errors = asdict(agreement)
        reason: str = errors.pop("reason")
        errors |= {"loss_rel": loss_error, "statistics_rel_rmse": agreement.statistics_rel_rmse}
        allowed = self._workload.loss_tolerance()
        if not reason and loss_error is not None and not loss_error <= allowed:
            reason = f"relative error of the loss is {loss_error:.1e}, {allowed:.0e} is allowed"
        if not reason and not variant:
            self.record |= cast("Measurement", self._workload.results(reference))
        if reason or not variant:  # the record has the errors of the first check, if both pass
            finite = {
                name: value if value is None or value < float("inf") else None
                for name, value in errors.items()
            }
            self.record["error"] = cast("Errors", finite)
        return reason

    def _warm(self, first_seconds: float) -> None:
        """Repeat the call until it gets no faster; slow calls are warm after the first."""
        start = time.perf_counter() - first_seconds
        self._prepare_images(WARM_UP_IMAGES)
        while time.perf_counter() - start < self.job.warm_up:
            self._present_image()
            self._warm_up.append(self._clock.time(self._call).host)
            if sampling.has_settled(self._warm_up):
                break
