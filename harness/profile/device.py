"""Moments on the device's own clock, and ranges that NVTX and torch's profiler know by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.profile.ranges import HOST, Key, Pass


class DeviceTicks:
    """Moments as CUDA events, which the device notes when it gets there.

    Parameters
    ----------
    cuda : module
        ``torch.cuda`` or a stand-in with ``Event`` and ``synchronize``.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def __call__(self) -> Any:
        """Return this moment of the current stream."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def resolve(self, noted: Pass) -> Pass:
        """Return the pass with seconds since its begin, after the device is done."""
        self._cuda.synchronize()
        events: Sequence[Any] = noted.times
        return noted._replace(times=[events[0].elapsed_time(event) / 1000 for event in events])


class Nvtx:
    """Names ranges for Nsight.

    Parameters
    ----------
    nvtx : module
        ``torch.cuda.nvtx`` or a stand-in.
    """

    def __init__(self, nvtx: Any) -> None:
        self._nvtx = nvtx

    def enter(self, key: Key) -> None:
        """Open a range."""
        self._nvtx.range_push(label(key))

    def leave(self) -> None:
        """Close the last range."""
        self._nvtx.range_pop()


class Recorded:
    """Names the ranges of the forward pass for torch's profiler.

    Those of the backward pass begin and end inside autograd's own ranges, which it cannot show.

    Parameters
    ----------
    record : callable
        ``torch.profiler.record_function`` or a stand-in.
    """

    def __init__(self, record: Any) -> None:
        self._record = record
        self._open: list[Any] = []

    def enter(self, key: Key) -> None:
        """Open a range."""
        shown = key.direction == "forward" and key.name != HOST
        context = self._record(label(key)) if shown else None
        if context is not None:
            context.__enter__()
        self._open.append(context)

    def leave(self) -> None:
        """Close the last range."""
        context = self._open.pop()
        if context is not None:
            context.__exit__(None, None, None)


def label(key: Key) -> str:
    """Return the name of a range for people."""
    inner = " (map)" if key.kind == "map" else ""
    back = "" if key.direction == "forward" else f" {key.direction}"
    return f"{key.name}{inner}{back}"
