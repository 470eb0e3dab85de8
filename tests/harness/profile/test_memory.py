"""Attribution of memory from made-up readings."""

import pytest

pytest.importorskip("torch")

from harness.profile.memory import Readings, held_at_peak, memory_kind
from harness.profile.profile import HeldMemory
from harness.profile.ranges import RangeKey

CONV = RangeKey("stem", "convolution", "forward")
MAP = RangeKey("stem", "map", "forward")
NORM = RangeKey("norm", "normalisation", "forward")
BACK = RangeKey("stem", "convolution", "backward")
STEP = RangeKey("optimiser", "optimiser", "step")
HOST = RangeKey("host", "host", "forward")


def readings(held, highest=None):
    if highest is None:
        highest = [max(pair) for pair in zip(held, held[:1] + held, strict=False)]
    return Readings([float(i) for i in range(len(held))], held, highest)


def test_memory_that_stays_is_an_activation_and_the_rest_is_workspace():
    seen = readings([1000, 1100, 1110], highest=[1000, 1100, 1150])
    assert held_at_peak([CONV, NORM], seen) == [
        HeldMemory("stem", "activation", 100),
        HeldMemory("norm", "workspace", 40),
        HeldMemory("norm", "activation", 10),
    ]


def test_a_map_built_in_a_layer_is_separate_from_its_rows():
    assert held_at_peak([MAP, CONV], readings([0, 100, 160])) == [
        HeldMemory("stem", "map", 100),
        HeldMemory("stem", "activation", 60),
    ]


def test_freed_memory_is_taken_from_the_layers_that_grew_last():
    seen = readings([0, 100, 160, 120, 200], highest=[0, 100, 160, 160, 220])
    assert held_at_peak([CONV, NORM, BACK, STEP], seen) == [
        HeldMemory("stem", "activation", 100),
        HeldMemory("optimiser", "optimiser", 100),
        HeldMemory("norm", "activation", 20),
    ]


def test_memory_from_before_the_call_belongs_to_no_layer():
    found = held_at_peak([HOST, CONV, NORM], readings([50, 10, 110, 130]))
    assert {(one.name, one.bytes) for one in found} == {("stem", 100), ("norm", 20)}


@pytest.mark.parametrize(
    ("key", "temporary", "kind"),
    [
        (BACK, False, "gradient"),
        (BACK, True, "workspace"),
        (CONV, False, "activation"),
        (STEP, False, "optimiser"),
        (MAP, True, "map"),
        (HOST, False, "other"),
    ],
)
def test_kinds_of_memory(key, temporary, kind):
    assert memory_kind(key, temporary=temporary) == kind
