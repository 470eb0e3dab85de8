"""Ranges: who spends the time, on a clock that the test turns."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.profile.ranges import (
    INSTRUMENT,
    RangeKey,
    RangeRecorder,
    interval_keys,
    self_times,
    spans,
)

LAYER = RangeKey("stem", "convolution", "forward")
NEXT = RangeKey("norm", "normalisation", "forward")
MAP = RangeKey("stem", "map", "forward")
HOST = RangeKey("host", "host", "forward")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ranges(clock):
    found = RangeRecorder(clock)
    found.begin()
    return found


def test_time_between_layers_counts_for_the_host(clock, ranges):
    clock.pass_(1)
    ranges.wrap(lambda: clock.pass_(10), LAYER)()
    clock.pass_(2)
    ranges.wrap(lambda: clock.pass_(20), NEXT)()
    clock.pass_(4)
    found = self_times(ranges.end())
    assert {key: one.seconds for key, one in found.items()} == {LAYER: 10, NEXT: 20, HOST: 7}
    assert found[LAYER].calls == 1


def test_a_map_built_inside_a_layer_has_its_own_time(clock, ranges):
    build = ranges.within("map")(lambda: clock.pass_(3))

    def convolve():
        clock.pass_(1)
        build()
        clock.pass_(2)

    ranges.wrap(convolve, LAYER)()
    found = self_times(ranges.end())
    assert found[LAYER].seconds == 3
    assert found[MAP].seconds == 3


def test_deferred_work_counts_for_its_layer_and_the_rest_for_the_host(clock, ranges):
    def convolve():
        return ranges.recorder(), ranges.outside_layers(lambda: clock.pass_(3))

    recorder, outside = ranges.wrap(convolve, LAYER)()
    ranges.wrap(outside, NEXT)()
    recorder.record_call(lambda: clock.pass_(7), backward=False)
    ranges.set_direction("backward")
    clock.pass_(1)
    recorder.record_call(lambda: clock.pass_(5), backward=True)
    assert not recorder.accepts_intervals
    found = self_times(ranges.end())
    assert found[LAYER] == (7, 1)
    assert found[LAYER._replace(direction="backward")] == (5, 1)
    assert found[NEXT].seconds == 0
    assert found[HOST].seconds == 3
    assert found[HOST._replace(direction="backward")].seconds == 1


def test_work_can_be_reported_after_its_end():
    ranges = RangeRecorder()
    ranges.begin()
    recorder = ranges.wrap(ranges.recorder, LAYER)()
    assert recorder.accepts_intervals
    begin = time.perf_counter()
    time.sleep(0.01)
    middle = time.perf_counter()
    time.sleep(0.02)
    end = time.perf_counter()
    recorder.record_interval(begin, middle, backward=False)
    recorder.record_interval(middle, end, backward=True)
    found = self_times(ranges.end())
    assert found[LAYER].seconds >= middle - begin
    assert found[LAYER._replace(direction="backward")].seconds == pytest.approx(end - middle)
    assert found[HOST].seconds < 0.01


def test_deferred_work_is_time_of_its_layer_but_no_call(clock, ranges):
    pending = ranges.wrap(lambda: ranges.deferred(lambda: clock.pass_(5)), LAYER)()
    ranges.wrap(pending, NEXT)()
    found = self_times(ranges.end())
    assert found[LAYER] == (5, 1)
    assert found[NEXT] == (0, 1)


def test_a_range_that_ended_can_be_extended(clock, ranges):
    ranges.wrap(lambda: clock.pass_(5), LAYER)()
    clock.pass_(2)
    ranges.extend(ranges.code(LAYER))
    clock.pass_(1)
    recorded = ranges.end()
    assert self_times(recorded)[LAYER].seconds == 7
    assert self_times(recorded)[HOST].seconds == 1
    assert [(span.key, span.seconds) for span in spans(recorded)] == [(LAYER, 7)]


def test_extending_a_range_that_still_runs_changes_nothing(clock, ranges):
    def layer():
        clock.pass_(2)
        ranges.extend(ranges.code(LAYER))
        clock.pass_(3)

    ranges.wrap(layer, LAYER)()
    recorded = ranges.end()
    assert self_times(recorded)[LAYER].seconds == 5
    assert [(span.key, span.seconds) for span in spans(recorded)] == [(LAYER, 5)]


def test_work_of_the_instruments_counts_for_no_layer(clock, ranges):
    ranges.wrap(lambda: clock.pass_(5), INSTRUMENT)()
    ranges.wrap(lambda: clock.pass_(1), LAYER)()
    recorded = ranges.end()
    assert self_times(recorded) == {HOST: (0, 1), LAYER: (1, 1)}
    assert INSTRUMENT in interval_keys(recorded)


def test_time_between_layers_is_counted_per_direction(clock, ranges):
    clock.pass_(1)
    ranges.set_direction("backward")
    clock.pass_(2)
    found = self_times(ranges.end())
    assert found[HOST].seconds == 1
    assert found[HOST._replace(direction="backward")].seconds == 2


def test_the_range_of_a_failing_layer_ends(clock, ranges):
    def fail():
        clock.pass_(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ranges.wrap(fail, LAYER)()
    clock.pass_(1)
    assert self_times(ranges.end())[HOST].seconds == 1


@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_self_times_sum_to_the_time_of_the_call(tree):
    clock = Clock()
    ranges = RangeRecorder(clock)
    names = itertools.count()

    def run(node):
        if isinstance(node, int):
            clock.pass_(node)
            return
        for child in node:
            ranges.wrap(
                lambda child=child: run(child), RangeKey(f"{next(names)}", "add", "forward")
            )()
            clock.pass_(1)

    ranges.begin()
    run(tree)
    recorded = ranges.end()
    total = sum(one.seconds for one in self_times(recorded).values())
    assert total == pytest.approx(clock.now)
    assert len(interval_keys(recorded)) == len(recorded.times) - 1


def test_autograd_nodes_belong_to_the_layer_that_created_them(clock):
    made = itertools.count()
    number = [0]
    ranges = RangeRecorder(clock, lambda: number[0])

    def make():
        number[0] = next(made) + 1

    ranges.begin()
    ranges.wrap(make, LAYER)()
    ranges.wrap(make, NEXT)()
    owner = ranges.owners()
    assert ranges.key(owner(0)) == LAYER
    assert ranges.key(owner(1)) == NEXT
    assert ranges.key(owner(2)) == HOST
