"""Times one call on two clocks: the host's, and the device's where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """Seconds that one call took; ``device`` is None where the device has no clock."""

    host: float
    device: float | None


class Clock(Protocol):
    """An instrument that times calls."""

    def time(self, call: Callable[[], Any]) -> Sample:
        """Run the call once and return how long it took."""
        ...


class HostClock:
    """The processor's clock.

    Parameters
    ----------
    now : callable
        Seconds since any moment; injected in tests.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def time(self, call: Callable[[], Any]) -> Sample:
        """Time a call that returns when its work is done."""
        start = self._now()
        call()
        return Sample(self._now() - start, None)


class CudaClock:
    """CUDA events around the call, and the host's clock from an idle device to an idle device.

    The device time leaves out what the host does before the first kernel; the difference between
    the two is the cost of launching, which dominates small sparse layers.

    Parameters
    ----------
    cuda : module
        ``torch.cuda``, or a stand-in with ``Event`` and ``synchronize``.
    now : callable
        Seconds since any moment.
    """

    def __init__(self, cuda: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = cuda
        self._now = now

    def time(self, call: Callable[[], Any]) -> Sample:
        """Time a call that may return before the device is done."""
        begin = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        self._cuda.synchronize()
        start = self._now()
        begin.record()
        call()
        end.record()
        self._cuda.synchronize()
        return Sample(self._now() - start, begin.elapsed_time(end) / 1000)
