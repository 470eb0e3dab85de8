import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.run import sampling
from harness.run.sampling import (
    StopRule,
    half_width,
    has_drift,
    has_settled,
    outliers,
    stop_reason,
    turn_order,
)

RULE = StopRule(spread=0.01, least=7, most=200, budget=10.0)


def sampled_until_stop(draw, seconds_each=0.01, rule=RULE):
    """Play a run of samples: how many it took, and why it ended."""
    samples = []
    while True:
        samples.append(draw(len(samples)))
        why = stop_reason(samples, len(samples) * seconds_each, rule)
        if why:
            return samples, why


def noisy(spread, seed=0):
    rng = random.Random(seed)
    return lambda i: 0.1 * (1 + rng.gauss(0, spread))


def test_a_quiet_series_stops_by_its_spread_as_soon_as_it_may():
    samples, why = sampled_until_stop(noisy(0.0005))
    assert (len(samples), why) == (RULE.least, "spread")


def test_a_noisier_series_takes_more_samples_and_knows_its_median():
    samples, why = sampled_until_stop(noisy(0.03))
    assert why == "spread"
    assert len(samples) > RULE.least
    assert median(samples) == pytest.approx(0.1, rel=0.03)


def test_a_very_noisy_series_ends_with_enough_samples():
    samples, why = sampled_until_stop(noisy(0.5))
    assert (len(samples), why) == (RULE.most, "samples")


def test_a_drifting_series_is_never_called_settled():
    samples, why = sampled_until_stop(lambda i: 0.1 * (1 + 0.002 * i))
    assert (len(samples), why) == (RULE.most, "samples")


def test_a_bimodal_series_is_not_called_settled_by_its_first_mode():
    rng = random.Random(1)
    _, why = sampled_until_stop(lambda i: rng.choice([0.1, 0.15]))
    assert why == "samples"


def test_outliers_neither_stop_the_sampling_nor_keep_it_going():
    rng = random.Random(2)
    draw = noisy(0.002)
    samples, why = sampled_until_stop(lambda i: draw(i) * (10 if rng.random() < 0.1 else 1))
    assert why == "spread"
    assert len(samples) < 60


def test_the_budget_ends_slow_calls():
    samples, why = sampled_until_stop(noisy(0.2), seconds_each=4.0)
    assert (len(samples), why) == (3, "budget")


def test_a_spent_budget_still_takes_the_fewest_samples():
    assert stop_reason([0.1, 0.1], 1e9, RULE) is None


@given(st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=50))
def test_the_half_width_is_relative(samples):
    assert half_width(samples) >= 0
    assert half_width([8 * s for s in samples]) == pytest.approx(half_width(samples), rel=1e-6)


@given(st.lists(st.floats(0.1, 0.2), min_size=4, max_size=40))
def test_a_repeated_series_does_not_drift(samples):
    assert not has_drift(samples + samples)


def test_a_step_is_a_drift():
    assert has_drift([0.1] * 10 + [0.11] * 10)


def test_a_warm_up_ends_when_calls_get_no_faster():
    falling = [1.0, 0.5, 0.3, 0.2, 0.15, 0.12]
    settled = [*falling, 0.11, 0.1, 0.1, 0.1, 0.1]
    assert not has_settled(falling)
    assert has_settled(settled)
    assert not has_settled(settled[:5])


def test_a_single_slow_call_does_not_prolong_the_warm_up():
    assert has_settled([0.1, 0.1, 0.1, 0.1, 0.5, 0.1])


def test_outliers_are_named_by_position():
    assert outliers([1.0, 1.01, 0.99, 5.0, 1.0, 1.02, 0.98]) == [3]
    assert outliers([1.0, 1.0, 1.0]) == []


@given(st.lists(st.integers(), unique=True, max_size=8), st.integers(), st.integers(0, 50))
def test_turns_mirror_each_other_in_pairs(items, seed, turn):
    order = turn_order(items, seed, 2 * turn)
    assert sorted(order) == sorted(items)
    assert turn_order(items, seed, 2 * turn + 1) == order[::-1]
    assert turn_order(items, seed, 2 * turn) == order


def test_every_item_goes_first_about_as_often():
    first = [turn_order("abc", 7, turn)[0] for turn in range(600)]
    assert all(120 < first.count(item) < 280 for item in "abc")


def test_quartiles_interpolate():
    assert sampling.quartiles([1, 2, 3, 4]) == (1.75, 2.5, 3.25)
