"""Verdicts on series whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.results.verdict import (
    Pair,
    Side,
    Verdict,
    holm,
    judge,
    judge_metric,
    mann_whitney_p,
    median,
    signed_rank_p,
    worst_outcome,
)
from harness.spec.metrics import GRAD_REL_RMSE, PEAK_RSS, Metric

BETWEEN, WITHIN = 0.01, 0.02


def rounds(rng, number, shift=0.0, samples=9, drift=None, between=BETWEEN, within=WITHIN):
    """Times around 50 ms: a process start draws its own level, its samples scatter around it."""
    drift = np.zeros(number) if drift is None else drift
    levels = np.log(0.05) + shift + drift + rng.normal(0, between, number)
    return {r: np.exp(rng.normal(levels[r], within, samples)).tolist() for r in range(number)}


def verdicts(pairs):
    return [judgement.verdict for judgement in judge(pairs)]


def share(found, *wanted):
    return sum(verdict in wanted for verdict in found) / len(found)


@pytest.mark.parametrize("took_turns", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4, 8, 12])
def test_identical_code_is_rarely_judged_different(took_turns, number):
    rng = np.random.default_rng(number)
    found = []
    for _ in range(100):
        pair = Pair(Side(rounds(rng, number)), Side(rounds(rng, number)), took_turns)
        found += verdicts([pair])
    assert share(found, Verdict.SLOWER, Verdict.FASTER) <= 0.01


def test_enough_turns_without_a_difference_are_called_the_same():
    rng = np.random.default_rng(3)
    pairs = [Pair(Side(rounds(rng, 16)), Side(rounds(rng, 16)), True) for _ in range(20)]
    assert share(verdicts(pairs), Verdict.SAME) >= 0.9


@pytest.mark.parametrize(("shift", "wanted"), [(0.05, Verdict.SLOWER), (-0.05, Verdict.FASTER)])
def test_five_per_cent_are_found_when_the_sides_take_turns(shift, wanted):
    rng = np.random.default_rng(5)
    found = []
    for _ in range(60):
        after = rounds(rng, 12, shift=np.log1p(shift))
        found += verdicts([Pair(Side(rounds(rng, 12)), Side(after), True)])
    assert share(found, wanted) >= 0.95


def test_drift_that_hits_both_sides_is_no_difference_and_hides_none():
    rng = np.random.default_rng(7)
    drift = np.linspace(0, 0.4, 12)  # the machine slows down by half during the run
    quiet = Pair(Side(rounds(rng, 12, drift=drift)), Side(rounds(rng, 12, drift=drift)), True)
    slower = Pair(
        Side(rounds(rng, 12, drift=drift)), Side(rounds(rng, 12, 0.05, drift=drift)), True
    )
    assert verdicts([quiet])[0] not in (Verdict.SLOWER, Verdict.FASTER)
    assert verdicts([slower]) == [Verdict.SLOWER]


def test_runs_at_different_times_need_a_larger_difference_than_runs_that_took_turns():
    rng = np.random.default_rng(9)
    before, after = Side(rounds(rng, 12)), Side(rounds(rng, 12, np.log(1.05)))
    assert verdicts([Pair(before, after, took_turns=True)]) == [Verdict.SLOWER]
    apart = judge([Pair(before, after, took_turns=False)])[0]
    assert apart.verdict is Verdict.UNCLEAR
    assert "did not take turns" in apart.reason
    assert "--against" in apart.reason


def test_one_round_cannot_show_a_small_difference_and_the_reason_says_how_many_can():
    rng = np.random.default_rng(11)
    samples = rng.normal(0.05, 0.0001, 500)  # many samples of one process prove little
    before = Side({0: samples.tolist()})
    after = Side({0: (samples * 1.06).tolist()})
    found = judge([Pair(before, after, True)])[0]
    assert found.verdict is Verdict.UNCLEAR
    assert "--repeats 8" in found.reason
    assert found.low < 1 < found.high


@pytest.mark.parametrize("took_turns", [True, False])
def test_one_round_is_enough_for_a_gross_difference(took_turns):
    rng = np.random.default_rng(13)
    before, after = Side(rounds(rng, 1)), Side(rounds(rng, 1, shift=np.log(3)))
    assert verdicts([Pair(before, after, took_turns)]) == [Verdict.SLOWER]
    assert verdicts([Pair(after, before, took_turns)]) == [Verdict.FASTER]


def test_a_few_disturbed_rounds_neither_raise_nor_hide_an_alarm():
    rng = np.random.default_rng(17)
    false, found = [], []
    for _ in range(50):
        noisy = rounds(rng, 16)
        noisy[3] = [1.6 * t for t in noisy[3]]  # a neighbour was busy
        false += verdicts([Pair(Side(rounds(rng, 16)), Side(noisy), True)])
        slow = rounds(rng, 16, shift=np.log(1.06))
        slow[5] = [0.8 * t for t in slow[5]]
        found += verdicts([Pair(Side(rounds(rng, 16)), Side(slow), True)])
    assert share(false, Verdict.SLOWER, Verdict.FASTER) <= 0.02
    assert share(found, Verdict.SLOWER) >= 0.9


def in_turns(levels, shift=0.0):
    """A side whose machine ran at ``levels``, (rounds, turns) in log time, with its turns' ends."""
    return {
        r: [0.05 * math.exp(level + shift) * wobble for level in row for wobble in (0.99, 1, 1.01)]
        for r, row in enumerate(levels)
    }


def test_a_machine_of_two_speeds_is_seen_through_turn_by_turn():
    rng = np.random.default_rng(21)
    found = {True: [], False: []}
    for known in found:
        for _ in range(20):
            slow = rng.integers(0, 2, (12, 15))
            sides = [(slow, 0.0), (slow ^ (rng.random((12, 15)) < 0.1), np.log(1.05))]
            turns = dict.fromkeys(range(12), (3,) * 15) if known else {}
            before, after = (
                Side(in_turns(np.log(1.7) * at + rng.normal(0, 0.02, at.shape), shift), turns=turns)
                for at, shift in sides  # a tenth of the turns sees the speed change between sides
            )
            found[known] += verdicts([Pair(before, after, True)])
    assert share(found[True], Verdict.SLOWER) >= 0.95
    assert share(found[False], Verdict.SLOWER) < 0.5


def test_turns_are_paired_by_their_number():
    levels = np.log(np.linspace(1, 2, 15))[None] + np.zeros((12, 1))
    before, after = in_turns(levels[:, :9]), in_turns(levels)  # one side stopped early
    sides = [
        Side(samples, turns={r: (3,) * (len(samples[r]) // 3) for r in samples})
        for samples in (before, after)
    ]
    assert judge([Pair(*sides, True)])[0].ratio == pytest.approx(1)


@pytest.mark.parametrize("counts", [(), (3, 3), (3, 3, 3, 3, 100)])
def test_turns_that_do_not_add_up_are_left_out(counts):
    rng = np.random.default_rng(25)
    before, after = rounds(rng, 12), rounds(rng, 12, np.log(1.3))
    plain = judge([Pair(Side(before), Side(after), True)])
    turns = dict.fromkeys(before, counts)
    assert judge([Pair(Side(before, turns=turns), Side(after, turns=turns), True)]) == plain


def test_single_outlying_samples_do_not_move_the_effect():
    rng = np.random.default_rng(19)
    before, after = rounds(rng, 10), rounds(rng, 10)
    spoiled = {r: [*samples, 5.0] for r, samples in after.items()}
    clean = judge([Pair(Side(before), Side(after), True)])[0]
    outlying = judge([Pair(Side(before), Side(spoiled), True)])[0]
    assert outlying.ratio == pytest.approx(clean.ratio, rel=0.01)


def test_two_modes_in_both_sides_are_unclear_or_the_same():
    rng = np.random.default_rng(23)

    def bimodal():
        return {r: rng.choice([0.05, 0.07], 9).tolist() for r in range(10)}

    found = verdicts([Pair(Side(bimodal()), Side(bimodal()), True) for _ in range(40)])
    assert share(found, Verdict.SLOWER, Verdict.FASTER) == 0


def test_unequal_numbers_of_rounds_and_samples_are_compared():
    rng = np.random.default_rng(29)
    before, after = rounds(rng, 12, samples=5), rounds(rng, 10, np.log(1.3), samples=21)
    assert verdicts([Pair(Side(before), Side(after), False)]) == [Verdict.SLOWER]
    assert verdicts([Pair(Side(before), Side(after), True)]) == [Verdict.SLOWER]


def test_rounds_pair_up_by_their_number():
    rng = np.random.default_rng(31)
    drift = np.linspace(0, 2, 14)
    before = rounds(rng, 14, drift=drift)
    after = rounds(rng, 14, np.log(1.06), drift=drift)
    del before[0], after[13]  # each side lost another round
    assert verdicts([Pair(Side(before), Side(after), True)]) == [Verdict.SLOWER]


def test_too_few_samples_are_named():
    found = judge([Pair(Side({0: [0.1, 0.1]}), Side({0: [0.2, 0.2]}))])[0]
    assert found.verdict is Verdict.UNCLEAR
    assert "too few samples: 2" in found.reason


def test_identical_series_are_the_same():
    series = {r: [0.05, 0.051, 0.052] for r in range(12)}
    assert verdicts([Pair(Side(series), Side(series), True)]) == [Verdict.SAME]


def test_more_cells_require_more_evidence_per_cell():
    rng = np.random.default_rng(37)
    suspicious = Pair(Side(rounds(rng, 8)), Side(rounds(rng, 8, np.log(1.05))), True)
    quiet = [Pair(Side(rounds(rng, 8)), Side(rounds(rng, 8)), True) for _ in range(300)]
    assert verdicts([suspicious]) == [Verdict.SLOWER]
    assert verdicts([suspicious, *quiet])[0] is Verdict.UNCLEAR
    assert share(verdicts(quiet), Verdict.SLOWER, Verdict.FASTER) == 0


@pytest.mark.parametrize(
    ("before", "after", "wanted", "words"),
    [
        (Side({0: [1.0] * 5}), None, Verdict.MISSING, "not measured after"),
        (Side(outcome="unavailable"), None, Verdict.SAME, "no time before (unavailable)"),
        (None, Side({0: [1.0] * 5}), Verdict.NEW, "not measured before"),
        (
            Side({0: [1.0] * 5}),
            Side(outcome="crashed", reason="signal 11"),
            Verdict.MISSING,
            "had a time, now crashed: signal 11",
        ),
        (
            Side({0: [1.0] * 5}),
            Side(outcome="wrong", reason="error 0.3"),
            Verdict.WRONG,
            "wrong results: error 0.3",
        ),
        (None, Side(outcome="wrong"), Verdict.WRONG, "wrong results"),
        (Side(outcome="timeout"), Side({0: [1.0] * 5}), Verdict.NEW, "before: timeout"),
        (
            Side(outcome="out-of-memory"),
            Side(outcome="out-of-memory"),
            Verdict.SAME,
            "no time on either side: out-of-memory",
        ),
    ],
)
def test_outcomes_have_verdicts_of_their_own(before, after, wanted, words):
    found = judge([Pair(before, after)])[0]
    assert found.verdict is wanted
    assert words in found.reason


def test_failures_rank_before_slow_downs():
    ranks = [Verdict.WRONG, Verdict.MISSING, Verdict.SLOWER, Verdict.UNCLEAR, Verdict.SAME]
    assert [v.rank for v in ranks] == sorted(v.rank for v in ranks)


@pytest.mark.parametrize(
    ("before", "after", "metric", "wanted"),
    [
        (1e9, 1.02e9, PEAK_RSS, Verdict.SAME),
        (1e9, 1.2e9, PEAK_RSS, Verdict.HEAVIER),
        (1.2e9, 1e9, PEAK_RSS, Verdict.LIGHTER),
        (0.0, 1e8, PEAK_RSS, Verdict.HEAVIER),
        (None, 1e9, PEAK_RSS, Verdict.UNCLEAR),
        (1e-7, 9e-7, GRAD_REL_RMSE, Verdict.SAME),
        (1e-7, 1e-2, GRAD_REL_RMSE, Verdict.WORSE),
        (1e-2, 1e-7, GRAD_REL_RMSE, Verdict.BETTER),
    ],
)
def test_memory_and_error_have_tolerances(before, after, metric, wanted):
    assert judge_metric(before, after, metric).verdict is wanted


def test_a_fall_of_a_metric_that_should_be_high_is_worse():
    agreement = Metric("x", "agreement", "", "higher", 0.001)
    assert judge_metric(1.0, 0.9, agreement).verdict is Verdict.WORSE


def test_the_worst_round_decides_the_outcome():
    assert worst_outcome(["ok", "crashed", "ok"]) == "crashed"
    assert worst_outcome(["timeout", "wrong"]) == "wrong"


@pytest.mark.parametrize(("n", "m"), [(6, 6), (1, 9), (12, 5)])
def test_exact_p_values_are_scipys(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(30, n)), rng.normal(size=(30, m)) + 0.5
    wanted = stats.mannwhitneyu(x, y, axis=1, method="exact").pvalue
    assert mann_whitney_p(x, y) == pytest.approx(wanted)
    assert signed_rank_p(x) == pytest.approx(stats.wilcoxon(x, axis=1, method="exact").pvalue)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_makes_evidence_stronger(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= 1).all()
    assert (np.argsort(adjusted[np.argsort(p)], kind="stable") == np.arange(len(p))).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_median_is_numpys(values):
    assert median(values) == pytest.approx(float(np.median(values)))


times = st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(times, times), min_size=1, max_size=10), st.booleans())
def test_swapping_the_sides_reverses_the_verdict(pairs, took_turns):
    before = Side({i: left for i, (left, _) in enumerate(pairs)})
    after = Side({i: right for i, (_, right) in enumerate(pairs)})
    one, other = (judge([Pair(*p, took_turns)])[0] for p in [(before, after), (after, before)])
    mirror = {Verdict.SLOWER: Verdict.FASTER, Verdict.FASTER: Verdict.SLOWER}
    assert other.verdict is mirror.get(one.verdict, one.verdict)
    assert one.ratio * other.ratio == pytest.approx(1)
    assert one.low <= one.ratio <= one.high


def test_thousands_of_rounds_do_not_overflow():
    x = np.random.default_rng(0).normal(0.05, 1, (1, 1200))
    assert signed_rank_p(x) == pytest.approx(stats.wilcoxon(x, axis=1).pvalue, rel=0.05)


def test_ten_thousand_rounds_are_judged_as_a_hundred_are():
    noise = np.random.default_rng(3).normal(0, 0.05, (2, 10_000))
    before = Side({r: [math.exp(v)] * 3 for r, v in enumerate(noise[0])})
    after = Side({r: [1.1 * math.exp(v)] * 3 for r, v in enumerate(noise[1])})
    for turns in (True, False):
        slower, same = judge([Pair(before, after, turns), Pair(before, before, turns)])
        assert slower.verdict is Verdict.SLOWER
        assert slower.low < 1.1 < slower.high
        assert slower.ratio == pytest.approx(1.1, rel=0.01)
        assert same.verdict is not Verdict.SLOWER
