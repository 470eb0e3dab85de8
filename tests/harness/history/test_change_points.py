"""Change points of synthetic histories with given steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.history.change_points import (
    SHORTEST,
    detect_change_points,
    noise_of,
    segments_by_least_squares,
)

NOISE = 0.03


def history(seed, steps=(), n=200):
    """Noise with steps: pairs of a place and a ratio."""
    y = np.random.default_rng(seed).normal(0, NOISE, n)
    for place, ratio in steps:
        y[place:] += np.log(ratio)
    return np.exp(y)


def find(values):
    return detect_change_points(list(values), smallest=0.03)


@pytest.mark.parametrize("ratio", [1.1, 1.3, 1 / 1.1, 1 / 1.3])
def test_a_step_is_found_with_its_place_its_size_and_its_confidence(ratio):
    right = false = 0
    for seed in range(40):
        steps = find(history(seed, [(90, ratio)])).changes
        right += any(s.first <= 90 <= s.last for s in steps)
        false += sum(not s.first <= 90 <= s.last for s in steps)
        for step in steps:
            assert step.ratio == pytest.approx(ratio, rel=0.04)
            assert step.confidence > 0.99
            assert step.last - step.first <= 10
    assert right >= 38
    assert false <= 2


@pytest.mark.parametrize("ratio", [1.05, 1 / 1.05])
def test_most_steps_of_five_per_cent_are_found_in_three_per_cent_of_noise(ratio):
    found = sum(
        any(s.first <= 90 <= s.last for s in find(history(seed, [(90, ratio)])).changes)
        for seed in range(40)
    )
    assert found >= 32


def test_noise_alone_has_no_steps():
    assert not [s for seed in range(60) for s in find(history(seed)).changes]


def test_single_outliers_are_no_steps_and_are_named():
    for seed in range(30):
        values = history(seed)
        places = np.random.default_rng(seed).choice(np.arange(5, 195, 10), 5, replace=False)
        values[places] *= np.random.default_rng(seed).uniform(1.4, 3, 5)
        found = find(values)
        assert not found.changes
        assert set(places) <= set(found.outliers)


def test_two_outliers_at_the_end_are_not_yet_a_change():
    values = history(0)
    values[-2:] *= 1.5
    assert not find(values).changes
    values[-3:] = history(1, n=3) * 1.5
    (step,) = find(values).changes
    assert step.first <= 197 <= step.last


def test_a_drift_is_distinguished_from_steps():
    for seed in range(20):
        drifting = history(seed) * np.exp(np.linspace(0, 0.15, 200))
        found = find(drifting)
        assert not found.changes
        assert found.drift is not None
        assert found.drift.ratio == pytest.approx(np.exp(0.15), rel=0.05)


def test_up_and_down_again_are_two_steps():
    values = history(4, [(60, 1.2), (140, 1 / 1.2)])
    found = find(values)
    assert [round(s.ratio, 1) for s in found.changes] == [1.2, 0.8]
    assert len(found.levels) == 3
    assert found.levels[0][0] == 0
    assert found.levels[-1][1] == 200


def test_a_change_too_small_to_matter_is_no_step():
    values = np.exp(np.random.default_rng(0).normal(0, 0.001, 100))
    values[50:] *= 1.02
    assert not find(values).changes
    values[50:] *= 1.02
    assert len(find(values).changes) == 1


def test_steps_of_counts_without_noise_are_found():
    (step,) = find([100.0] * 20 + [150.0] * 20).changes
    assert step.ratio == pytest.approx(1.5)
    assert (step.first, step.last) == (20, 20)


@pytest.mark.parametrize("n", range(2 * SHORTEST))
def test_short_histories_have_no_changes(n):
    assert not find(history(0, [(n // 2, 3.0)], n=n) if n else []).changes


def test_a_short_history_shows_a_gross_step():
    (step,) = find(history(2, [(5, 1.5)], n=10)).changes
    assert step.first <= 5 <= step.last


def test_the_segments_are_those_of_ruptures():
    ruptures = pytest.importorskip("ruptures")
    for seed in range(5):
        y = np.log(history(seed, [(50, 1.1), (120, 0.8)]))
        scaled = y / noise_of(y)
        pelt = ruptures.Pelt("l2", min_size=SHORTEST, jump=1).fit(scaled)
        assert segments_by_least_squares(y) == pelt.predict(3 * np.log(len(y)))[:-1]


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), max_size=60))
def test_any_series_is_cut_into_adjoining_levels(values):
    found = find(values)
    edges = [edge for begin, end, _ in found.levels for edge in (begin, end)]
    if values:
        assert edges[0] == 0
        assert edges[-1] == len(values)
        assert edges[1:-1:2] == edges[2::2]
    assert all(0 < s.first <= s.last < len(values) for s in found.changes)
