"""Clocks that time one call on the host and, where possible, on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """Duration of one call in seconds; ``device`` is None where the device has no clock."""

    host: float
    device: float | None


class Clock(Protocol):
    """An instrument that times calls."""

    def time(self, call: Callable[[], Any]) -> Sample:
        """Run the call once and return its duration."""
        ...


class HostClock:
    """The processor's clock.

    Parameters
    ----------
    now : callable
        Clock, in seconds; replaced in tests.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def time(self, call: Callable[[], Any]) -> Sample:
        """Time a call that returns after its work is done."""
        start = self._now()
        call()
        return Sample(self._now() - start, None)


class CudaClock:
    """CUDA events around the call, and the host's clock from an idle device to an idle device.

    The device time excludes the work of the host before the first kernel. The difference between
    the two is the cost of launches, which dominates small sparse layers.

    Parameters
    ----------
    cuda : module
        ``torch.cuda``, or a stand-in with ``Event`` and ``synchronize``.
    now : callable
        Clock, in seconds.
    """

    def __init__(self, cuda: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._cuda = cuda
        self._now = now

    def time(self, call: Callable[[], Any]) -> Sample:
        """Time a call that may return before the device has finished."""
        begin = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        self._cuda.synchronize()
        start = self._now()
        begin.record()
        call()
        end.record()
        self._cuda.synchronize()
        return Sample(self._now() - start, begin.elapsed_time(end) / 1000)
