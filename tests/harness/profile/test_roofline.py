from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.profile.ceilings import Ceilings
from harness.profile.roofline import (
    Limit,
    limit_of,
    limit_sentence,
    limits,
    network_limit,
    rate,
    roof,
    roofline_figure,
)
from harness.report.style import Looks
from tests.harness.profile import made


def test_a_layers_limit_is_its_arithmetic_and_its_traffic():
    found = limit_of(made.STEM, Ceilings.from_json(made.CEILINGS), "fp32")
    # 1e8 FLOP at 1e11 a second, 1e7 bytes at 1e10 a second.
    assert (found.arithmetic, found.traffic) == pytest.approx((1e-3, 1e-3))
    assert found.seconds == pytest.approx(2e-3)
    assert found.ratio == pytest.approx(2.0)


def test_the_limit_of_a_layer_without_work_is_its_launch():
    layer = replace(made.NORM, bytes=10, calls=50)
    found = limit_of(layer, Ceilings.from_json(made.CEILINGS), "fp32")
    assert found.seconds == pytest.approx(50e-6)


def test_layers_without_counted_work_have_no_limit():
    found = limits(made.profile())
    assert [limit is None for limit in found] == [False, False, False, True, False]
    assert limits(made.profile(ceilings=None)) == [None] * 5
    elsewhere = made.profile(cell=made.cell(precision="fp64"))
    assert limits(elsewhere) == [None] * 5


def test_the_networks_limit_is_the_sum_of_its_layers():
    found = network_limit(made.profile(seconds=0.02))
    assert found.arithmetic == pytest.approx(1e-3 + 0.5e-3 + 2e-3)
    assert found.traffic == pytest.approx(1e-3 + 0.5e-3 + 2e-3 + 0.1e-3)
    assert found.measured == 0.02
    assert found.ratio == pytest.approx(0.02 / 7.1e-3)
    backward = network_limit(made.profile(), ["backward"])
    assert backward.seconds == pytest.approx(4e-3)
    assert backward.measured == pytest.approx(8e-3)
    assert network_limit(made.profile(ceilings=None)) is None


def test_broken_ceilings_are_refused():
    with pytest.raises(BadInput, match="ceilings must have"):
        limits(made.profile(ceilings={"flops": {}}))


@given(st.floats(0.01, 1e4), st.floats(1e9, 1e14), st.floats(1e9, 1e13))
def test_the_roof_is_below_both_ceilings_and_at_least_half_of_the_lower(intensity, peak, copy):
    lower = min(peak, intensity * copy)
    assert 0.499 * lower <= roof(intensity, peak, copy) <= lower * (1 + 1e-9)


def test_a_point_on_the_roof_is_a_layer_at_its_limit():
    peak, copy = 1e11, 1e10
    seconds = 10**8 / peak + 10**7 / copy
    assert 10**8 / seconds == pytest.approx(roof(10.0, peak, copy))


def test_the_figure_has_every_layer_that_multiplies():
    alone = made.profile()
    drawn = roofline_figure([alone], Looks(["sscn"]), ["sscn"])
    assert drawn.count("PathCollection") == 3
    assert "stem" in drawn and "unet.down" in drawn
    assert "100 GFLOP/s" in drawn
    other = made.profile("spconv", layers=[replace(made.STEM, seconds=0.01), made.BACK])
    both = roofline_figure([alone, other], Looks(["sscn", "spconv"]), ["sscn", "spconv"])
    assert both.count("PathCollection") == 5
    assert "spconv" in both
    assert roofline_figure([made.profile(ceilings=None)], Looks(["sscn"]), ["sscn"]) == ""


def test_the_figure_names_each_layer_once_and_has_the_bandwidth_of_its_curve():
    alone = made.profile()
    drawn = roofline_figure([alone], Looks(["sscn"]), ["sscn"])
    assert drawn.count(">stem<") == 1
    slower = made.profile("spconv", ceilings=made.CEILINGS | {"flops": {"fp32": 9e10}, "copy": 2e9})
    both = roofline_figure([alone, slower], Looks(["sscn", "spconv"]), ["sscn", "spconv"])
    assert "copy 10 GB/s" in both
    assert "copy 2 GB/s" not in both


@pytest.mark.parametrize(
    ("value", "words"), [(1.234e12, "1.23 TFLOP/s"), (5e9, "5 GFLOP/s"), (12.0, "12 FLOP/s")]
)
def test_rates_are_written_with_prefixes(value, words):
    assert rate(value) == words


def test_the_sentence_has_all_numbers():
    words = limit_sentence(Limit(arithmetic=3e-3, traffic=1e-3, launch=1e-6, measured=8e-3))
    for part in ("4 ms", "3 ms of arithmetic", "1 ms of memory traffic", "2 times"):
        assert part in words
