"""Energy counters: NVML on a GPU, RAPL on a processor where the kernel exposes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from harness.instruments.gpu import query

LEAST_SECONDS = 2.0
"""Shortest window. NVML updates its counter every 20 to 100 ms; shorter windows are inaccurate."""

LEAST_UPDATES = 10
"""Updates of the counter in a window of short calls, at least."""

READING_SECONDS = 0.05
"""Interval of readings inside a window. Each takes time in which the device does nothing."""


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

    A counter is constant between its updates, so the window begins and ends with a call during
    which it changed. A call that lasts as long as a window is a window of its own.

    Parameters
    ----------
    call : callable
        One call on a whole batch; it must return after its work is done.
    counter : EnergyCounter
        The instrument.
    batch : int
        Events per call.
    seconds : float
        Shortest duration of the window.
    now : callable
        The clock, in seconds.

    Returns
    -------
    float or None
        Joules per event; None without a counter, or if it changed fewer than ``LEAST_UPDATES``
        times in the window and not between all readings.
    """
    calls = begun = 0

    def after_calls(least: float = 0.0) -> float | None:
        nonlocal calls
        start = now()
        while True:
            call()
            calls += 1
            if now() - start >= least:
                return counter.joules()

    before = counter.joules()
    if before is None:
        return None
    start = now()
    after = after_calls()
    if now() - start < seconds:
        while after == before and now() - start < seconds:
            after = after_calls()
        before, begun, start = after, calls, now()
        readings = updates = 0
        while now() - start < seconds:
            latest, after = after, after_calls(READING_SECONDS)
            readings += 1
            updates += after != latest
        if updates < min(LEAST_UPDATES, readings):
            return None
        latest = after
        while after == latest and now() - start < 2 * seconds:
            after = after_calls()
    if after is None or before is None or after <= before:
        return None
    return (after - before) / ((calls - begun) * batch)
