"""Energy counters: NVML on a GPU, RAPL on a processor where the kernel exposes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.instruments.gpu import query

LEAST_SECONDS = 2.0
"""Shortest window. NVML updates its counter every 20 to 100 ms; shorter windows are inaccurate."""


class EnergyCounter(Protocol):
    """A counter of joules."""

    def joules(self) -> float | None:
        """Return the counter, or None where the hardware has none."""
        ...


class NvmlEnergy:
    """The energy of a whole GPU since its driver was loaded (Volta and later).

    Parameters
    ----------
    nvml : module
        ``pynvml`` or a stand-in.
    handle
        Handle of the device.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def joules(self) -> float | None:
        """Return the counter in joules; NVML counts millijoules."""
        count = query(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if count is None else count / 1000


class RaplEnergy:
    """The energy of all processor packages, from the kernel's powercap interface.

    A package's counter wraps around at ``max_energy_range_uj``. The sum is right if it is read at
    least once per wrap.

    Parameters
    ----------
    folder : Path
        ``/sys/class/powercap``.
    """

    def __init__(self, folder: Path = Path("/sys/class/powercap")) -> None:
        self._packages = [
            path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1
        ]
        self._last: dict[Path, int] = {}
        self._total = 0

    def joules(self) -> float | None:
        """Return the count since the first reading; None without a readable counter."""
        if not self._packages:
            return None
        try:
            for package in self._packages:
                now = int((package / "energy_uj").read_text())
                step = now - self._last.get(package, now)
                if step < 0:
                    step += int((package / "max_energy_range_uj").read_text())
                self._last[package] = now
                self._total += step
        except OSError:
            return None
        return self._total / 1e6


def joules_per_event(
    call: Callable[[], Any],
    counter: EnergyCounter,
    batch: int,
    *,
    seconds: float = LEAST_SECONDS,
    now: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Repeat a call for some seconds and divide the energy by the number of events.

    Parameters
    ----------
    call : callable
        One call on a whole batch; it must return after its work is done.
    counter : EnergyCounter
        The instrument.
    batch : int
        Events per call.
    seconds : float
        Shortest duration of the repeats.
    now : callable
        The clock, in seconds.

    Returns
    -------
    float or None
        Joules per event; None without a counter, or if it did not change.
    """
    before = counter.joules()
    if before is None:
        return None
    start, calls = now(), 0
    while calls == 0 or now() - start < seconds:
        call()
        calls += 1
    after = counter.joules()
    if after is None or after <= before:
        return None
    return (after - before) / (calls * batch)
