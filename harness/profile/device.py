"""Range boundaries on the clock of a GPU, and listeners for NVTX and torch's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.profile.ranges import HOST, RangeKey, RecordedCall


class DeviceTicks:
    """Range boundaries as CUDA events, which the device records in stream order.

    Parameters
    ----------
    cuda : module
        ``torch.cuda`` or a stand-in with ``Event`` and ``synchronize``.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def __call__(self) -> Any:
        """Record an event in the current stream and return it."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def resolve(self, recorded: RecordedCall) -> RecordedCall:
        """Wait for the device, and return the call with its times in seconds."""
        self._cuda.synchronize()
        events: Sequence[Any] = recorded.times
        return recorded._replace(times=[events[0].elapsed_time(event) / 1000 for event in events])


class NvtxListener:
    """Forwards ranges to NVTX, which Nsight displays.

    Parameters
    ----------
    nvtx : module
        ``torch.cuda.nvtx`` or a stand-in.
    """

    def __init__(self, nvtx: Any) -> None:
        self._nvtx = nvtx

    def enter(self, key: RangeKey) -> None:
        """Open a range."""
        self._nvtx.range_push(range_label(key))

    def leave(self) -> None:
        """Close the range that was opened last."""
        self._nvtx.range_pop()


class ProfilerListener:
    """Forwards the ranges of the forward pass to torch's profiler.

    Ranges of the backward pass would overlap autograd's own ranges, which torch does not allow.

    Parameters
    ----------
    record : callable
        ``torch.profiler.record_function`` or a stand-in.
    """

    def __init__(self, record: Any) -> None:
        self._record = record
        self._open: list[Any] = []

    def enter(self, key: RangeKey) -> None:
        """Open a range."""
        shown = key.direction == "forward" and key.name != HOST
        context = self._record(range_label(key)) if shown else None
        if context is not None:
            context.__enter__()
        self._open.append(context)

    def leave(self) -> None:
        """Close the range that was opened last."""
        context = self._open.pop()
        if context is not None:
            context.__exit__(None, None, None)


def range_label(key: RangeKey) -> str:
    """Return the name of a range for viewers."""
    inner = " (map)" if key.kind == "map" else ""
    back = "" if key.direction == "forward" else f" {key.direction}"
    return f"{key.name}{inner}{back}"
