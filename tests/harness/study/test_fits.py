"""Power laws and crossings with known parameters."""

import numpy as np
import pytest

from harness.study.fits import crossing, power_law


def test_an_exact_power_law_is_found_with_a_narrow_interval():
    x = [1.0, 2.0, 4.0, 8.0]
    law = power_law(x, [3 * value**1.5 for value in x])
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.factor == pytest.approx(3)
    assert law.high - law.low < 1e-6
    assert law(16.0) == pytest.approx(3 * 64)


def test_the_interval_holds_the_true_exponent_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    held = 0
    for _ in range(300):
        law = power_law(x.tolist(), (x**0.8 * np.exp(rng.normal(0, 0.1, 5))).tolist())
        assert law is not None
        held += law.low <= 0.8 <= law.high
    assert 0.90 <= held / 300 <= 0.99


def test_two_points_have_no_exponent():
    assert power_law([1, 4], [1, 2]) is None
    assert power_law([1, 4, 4], [1, 2, 2.1]) is None


def test_values_without_a_logarithm_are_left_out():
    law = power_law([1, 2, 4, 8, 16], [1, float("nan"), 4, -1, 16])
    assert law is not None and law.points == 3


def test_one_abscissa_has_no_exponent():
    assert power_law([2, 2, 2], [1, 2, 3]) is None


def test_curves_cross_between_the_points_that_enclose_it():
    # t = 100 x against a constant 1: they meet at x = 0.01.
    x = [0.001, 0.004, 0.05, 1.0]
    assert crossing(x, [100 * v for v in x], [1.0] * 4) == pytest.approx(0.01)


def test_curves_that_never_cross_or_start_above_have_no_crossing():
    assert crossing([1, 2], [1, 2], [3, 4]) is None
    assert crossing([1, 2], [5, 6], [3, 4]) is None
    assert crossing([], [], []) is None
