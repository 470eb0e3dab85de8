"""The account of memory on made-up marks."""

import pytest

pytest.importorskip("torch")

from harness.profile.memory import Block, Marks, at_peak, blocks_of, kind_of, on_balance
from harness.profile.profile import Held
from harness.profile.ranges import Key

CONV = Key("stem", "convolution", "forward")
MAP = Key("stem", "map", "forward")
NORM = Key("norm", "normalisation", "forward")
BACK = Key("stem", "convolution", "backward")
STEP = Key("optimiser", "optimiser", "step")
HOST = Key("host", "host", "forward")


def marks(resident, in_use=None, highest=None):
    highest = highest or [
        max(pair) for pair in zip(resident, resident[:1] + resident, strict=False)
    ]
    return Marks([float(i) for i in range(len(resident))], resident, highest, in_use or resident)


def test_blocks_are_put_together_from_what_the_allocator_says():
    events = [(7, 5), None, (1, 100), None, (2, 50), (1, -100), (7, -5), None, (1, 30)]
    assert set(blocks_of(events, gradients={1})) == {
        Block(100, 0, 1),
        Block(50, 1, None),
        Block(30, 2, None, gradient=True),
    }


def test_what_outlives_its_layer_is_an_activation_and_the_rest_is_workspace():
    blocks = [Block(100, 0, None), Block(40, 1, 1)]
    seen = marks([1000, 1100, 1100], highest=[1000, 1100, 1140])
    assert at_peak([CONV, NORM], blocks, seen) == [
        Held("stem", "activation", 100),
        Held("norm", "workspace", 40),
    ]


def test_what_torch_does_not_know_is_the_engines_map():
    seen = marks([0, 100, 160], in_use=[0, 100, 160])
    assert at_peak([MAP, CONV], [Block(60, 1, None)], seen) == [
        Held("stem", "map", 100),
        Held("stem", "activation", 60),
    ]


def test_memory_that_is_never_touched_does_not_count():
    seen = marks([0, 30, 80], in_use=[0, 100, 150])
    found = at_peak([CONV, NORM], [Block(100, 0, None), Block(50, 1, None)], seen)
    assert sum(held.bytes for held in found) == 80
    assert Held("stem", "activation", 30) in found


def test_freed_memory_that_stays_is_reused_before_more_is_counted():
    blocks = [Block(100, 0, 1), Block(80, 2, None)]
    seen = marks([0, 100, 100, 100, 130], in_use=[0, 100, 0, 80, 110])
    found = at_peak([CONV, HOST, NORM, NORM], [*blocks, Block(30, 3, None)], seen)
    assert sum(held.bytes for held in found) == 130
    assert Held("norm", "activation", 80 + 30) in found
    assert Held("host", "other", 20) in found


@pytest.mark.parametrize(
    ("key", "outlives", "gradient", "kind"),
    [
        (BACK, True, False, "gradient"),
        (BACK, False, False, "workspace"),
        (CONV, True, True, "gradient"),
        (STEP, True, False, "optimiser"),
        (MAP, False, False, "map"),
        (HOST, True, False, "other"),
    ],
)
def test_kinds(key, outlives, gradient, kind):
    assert kind_of(key, outlives=outlives, gradient=gradient) == kind


def test_where_only_the_sum_is_known_what_goes_came_last():
    held = [0, 100, 160, 120, 200]
    seen = marks(held, highest=[0, 100, 160, 160, 220])
    assert on_balance([CONV, NORM, BACK, STEP], seen) == [
        Held("stem", "activation", 100),
        Held("optimiser", "optimiser", 100),
        Held("norm", "activation", 20),
    ]
