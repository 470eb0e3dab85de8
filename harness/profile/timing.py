"""Times of the layers, from calls that alternately have ranges and have none."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from harness.instruments.clock import Clock
from harness.profile.backward import sequence_number
from harness.profile.device import DeviceTicks, NvtxListener
from harness.profile.instrument import recording_ranges
from harness.profile.ranges import RangeKey, RangeRecorder, RecordedCall, SelfTime
from harness.run import sampling
from harness.run.workload import Workload

RULE = sampling.StopRule(spread=0.01, least=7, most=100)


def record_call(workload: Workload, call: Callable[[], Any], ranges: RangeRecorder) -> RecordedCall:
    """Run a call with ranges around its layers, and return the ranges."""
    with recording_ranges(workload, ranges):
        ranges.begin()
        call()
        return ranges.end()


def time_calls(
    workload: Workload, call: Callable[[], Any], clock: Clock, seconds: float
) -> tuple[list[float], list[RecordedCall]]:
    """Time alternate calls with and without ranges, after one of each that does not count.

    Parameters
    ----------
    workload : Workload
        After its warm-up.
    call : callable
        The workload's call.
    clock : Clock
        Clock for calls without ranges.
    seconds : float
        Time for all calls.

    Returns
    -------
    plain : list of float
        Seconds of each call without ranges, on the device's clock if there is one.
    recorded : list of RecordedCall
        The calls with ranges, one per call without ranges.
    """
    ranges, resolve = _device_ranges(workload.cell.device)
    plain: list[float] = []
    recorded: list[RecordedCall] = []

    def time_plain_call() -> None:
        sample = clock.time(call)
        plain.append(sample.host if sample.device is None else sample.device)

    def time_recorded_call() -> None:
        recorded.append(resolve(record_call(workload, call, ranges)))

    time_recorded_call()
    recorded.clear()
    rule = sampling.StopRule(RULE.spread, RULE.least, RULE.most, seconds)
    gc.collect()
    gc.freeze()  # collections during the calls then ignore all objects that exist already
    start = time.perf_counter()
    turns = (time_plain_call, time_recorded_call)
    while not sampling.stop_reason(plain, time.perf_counter() - start, rule):
        for turn in turns if len(plain) % 2 else reversed(turns):
            turn()
    gc.unfreeze()
    return plain, recorded


def typical_self_times(
    calls: Sequence[Mapping[RangeKey, SelfTime]], plain: Sequence[float]
) -> dict[RangeKey, SelfTime]:
    """Return the self time of each range in a typical call, in the order of their first call.

    The share of a range is its self time over the time of the adjacent call without ranges. It does
    not change if the machine's speed drifts. The result is the mean of the shares over the middle
    half of the calls, times the median time without ranges. Means add up to the whole time; medians
    of single ranges would not. A range that is missing in a call counts as zero there.

    Parameters
    ----------
    calls : sequence of mapping
        Self times of each call with ranges.
    plain : sequence of float
        Seconds of the adjacent call without ranges, for each of them.
    """

    def over_plain(pair: tuple[Mapping[RangeKey, SelfTime], float]) -> float:
        return sum(one.seconds for one in pair[0].values()) / pair[1]

    ordered = sorted(zip(calls, plain, strict=True), key=over_plain)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    keys = dict.fromkeys(key for found, _ in middle for key in found)
    nothing, whole = SelfTime(0.0, 0), median(plain)
    return {
        key: SelfTime(
            whole
            * sum(found.get(key, nothing).seconds / own for found, own in middle)
            / len(middle),
            max(found.get(key, nothing).calls for found, _ in middle),
        )
        for key in keys
    }


def median_call(calls: Sequence[RecordedCall]) -> RecordedCall:
    """Return the call with the median time."""
    return sorted(calls, key=lambda call: call.seconds)[len(calls) // 2]


def _device_ranges(
    device: str,
) -> tuple[RangeRecorder, Callable[[RecordedCall], RecordedCall]]:
    """Return a recorder on the device's clock, and a function that resolves its times."""
    if device != "cuda":
        return RangeRecorder(time.perf_counter, sequence_number), lambda recorded: recorded
    ticks = DeviceTicks(torch.cuda)
    return RangeRecorder(ticks, sequence_number, NvtxListener(torch.cuda.nvtx)), ticks.resolve
