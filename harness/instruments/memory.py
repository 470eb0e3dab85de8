"""Memory of a call: resident on the host, torch's allocator, and the device by NVML."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.instruments.gpu import device_facts, query


class MemoryInstrument(Protocol):
    """An instrument that measures the memory of a call."""

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Run the call and return entries of a record's ``memory``."""
        ...


class ResidentMemory:
    """The process's resident memory before and at the peak of a call, from the kernel.

    The kernel records the peak (VmHWM), so that no peak between samples is missed and the call is
    not slowed down. Memory that the allocator retains from earlier calls is returned to the system
    first, because the call would reuse it. Writing 5 to ``clear_refs`` resets the peak; where that
    is not permitted, ``rss_peak_reset`` is false and the peak is that of the whole process.

    Parameters
    ----------
    process : Path
        The process's folder in ``/proc``.
    """

    def __init__(self, process: Path = Path("/proc/self")) -> None:
        self._process = process

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Run the call; return ``baseline_bytes`` and ``peak_rss_bytes``."""
        _give_back_freed()
        reset = self.reset_peak()
        baseline = self.status("VmRSS")
        call()
        return {
            "baseline_bytes": baseline,
            "peak_rss_bytes": self.status("VmHWM"),
            "rss_peak_reset": reset,
        }

    def status(self, name: str) -> int:
        """Return an entry of the process's status, in bytes."""
        for line in (self._process / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise KeyError(f"the kernel does not report {name}")

    def reset_peak(self) -> bool:
        """Reset the peak; return whether the kernel permits it."""
        try:
            (self._process / "clear_refs").write_text("5")
        except OSError:
            return False
        return True


def _give_back_freed() -> None:
    """Return freed memory to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class TorchMemory:
    """Memory that torch's caching allocator had allocated and reserved at the peak of a call.

    Parameters
    ----------
    cuda : module
        ``torch.cuda`` or a stand-in.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Run the call; return ``torch_allocated_bytes`` and ``torch_reserved_bytes``."""
        self._cuda.synchronize()
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()
        call()
        self._cuda.synchronize()
        return {
            "torch_allocated_bytes": self._cuda.max_memory_allocated(),
            "torch_reserved_bytes": self._cuda.max_memory_reserved(),
        }


@dataclass
class _Peaks:
    """The largest value of each quantity."""

    values: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, int | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self.values[name] = max(value, self.values.get(name, 0))


class NvmlMemory:
    """The device's memory as NVML reports it, sampled while a call runs.

    It is the memory of this process where NVML lists it. In a container NVML lists the host's
    process numbers; then it is the use of the whole device over the baseline: by NVML's version 2,
    which excludes what the driver reserves, or else by version 1, which includes it.

    Parameters
    ----------
    nvml : module
        ``pynvml`` or a stand-in.
    handle
        Handle of the device.
    pid : int
        Number of this process.
    baseline : dict
        Result of ``NvmlMemory.read`` before the process used the device.
    interval : float
        Seconds between samples.
    """

    def __init__(
        self, nvml: Any, handle: Any, pid: int, baseline: dict[str, int | None], interval: float
    ) -> None:
        self._nvml = nvml
        self._handle = handle
        self._pid = pid
        self._baseline = baseline
        self._interval = interval

    @staticmethod
    def read(nvml: Any, handle: Any, pid: int) -> dict[str, int | None]:
        """Return NVML's current values in bytes; None for those that it does not report."""
        first = query(nvml, "nvmlDeviceGetMemoryInfo", handle)
        version = getattr(nvml, "nvmlMemory_v2", None)
        second = version and query(nvml, "nvmlDeviceGetMemoryInfo", handle, version=version)
        return {
            "v1_used": None if first is None else first.used,
            "v2_used": None if second is None else second.used,
            "process": NvmlMemory._of_process(nvml, handle, pid),
        }

    @staticmethod
    def _of_process(nvml: Any, handle: Any, pid: int) -> int | None:
        for question in (
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetComputeRunningProcesses",
        ):
            processes = query(nvml, question, handle)
            if processes is not None:
                return next((each.usedGpuMemory for each in processes if each.pid == pid), None)
        return None

    def measure(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Run the call; return the peak, its meaning and the interval."""
        peaks = _Peaks()
        done = threading.Event()

        def sample() -> None:
            while True:
                peaks.add(self.read(self._nvml, self._handle, self._pid))
                if done.wait(self._interval):
                    return

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            call()
        finally:
            done.set()
            thread.join()
        peaks.add(self.read(self._nvml, self._handle, self._pid))
        return self._entries(peaks)

    def _entries(self, peaks: _Peaks) -> dict[str, Any]:
        seen = peaks.values
        chosen = next((name for name in ("process", "v2_used", "v1_used") if name in seen), None)
        baseline = 0 if chosen in (None, "process") else self._baseline.get(chosen) or 0
        return {
            "nvml_peak_bytes": None if chosen is None else seen[chosen],
            "nvml_baseline_bytes": None if chosen is None else baseline,
            "nvml_meaning": chosen,
            "nvml_interval_s": self._interval,
        }


def nvml_baselines(nvml: Any, pid: int) -> dict[str, dict[str, int | None]]:
    """Return the memory of every device by UUID, before torch has chosen one."""
    found = {}
    for number in range(query(nvml, "nvmlDeviceGetCount") or 0):
        handle = query(nvml, "nvmlDeviceGetHandleByIndex", number)
        if handle is not None:
            uuid = device_facts(nvml, handle)["gpu_uuid"]
            found[uuid] = NvmlMemory.read(nvml, handle, pid)
    return found


def outside_torch(entries: Mapping[str, Any]) -> dict[str, int]:
    """Return the device memory outside torch's allocator, where torch and NVML both reported.

    It is the memory of the CUDA context, the engine's own allocations and its libraries.
    """
    peak, reserved = entries.get("nvml_peak_bytes"), entries.get("torch_reserved_bytes")
    if peak is None or reserved is None:
        return {}
    return {"outside_torch_bytes": max(peak - (entries["nvml_baseline_bytes"] or 0) - reserved, 0)}
