"""Verdicts: whether a cell became slower, derived from its samples, with the reason in words.

The statistical unit is the *round*: one worker process, summarised by the logarithm of its median
sample. The samples of a process are not independent, because they share its memory layout and the
clock speed and load of the machine at that time. Treating them as independent would cause false
alarms.

How a time is judged
    *Effect.* The ratio of the two sides, by Hodges and Lehmann's estimator over rounds, which a
    single disturbed round hardly changes. If the sides took turns within their rounds, and the
    records contain the number of samples per turn, the same estimator over turns summarises a
    round: if the machine is slow for a second, both sides are.

    *Test.* Sides that took turns are compared round by round with Wilcoxon's signed-rank test, an
    exact permutation test that exchanges the sides of each pair; drift that affects both sides
    alike cancels. Sides of two separate runs are compared with the Mann-Whitney test over rounds,
    and must in addition pass the next test, because the machine may have changed between the runs.
    If there are too few rounds for a permutation test to reach the required level, a moderated
    t-test decides: the variance between rounds is estimated from the rounds and shrunk upwards to
    a prior, the usual variance between processes (Smyth 2004, doi:10.2202/1544-6115.1027, eq. 3
    with the prior in ``Rule``). With one round per side, only the prior is available, and only
    large differences are significant.

    *Many cells.* Holm's procedure bounds the probability of one or more false alarms in the whole
    comparison by ``Rule.alpha``.

    *Relevance.* A difference below ``Rule.smallest`` is never SLOWER or FASTER. SAME requires that
    the whole 95 % confidence interval is within ``Rule.smallest``. Every other result is UNCLEAR,
    with the number of rounds that would suffice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.results.record import OUTCOMES
from harness.spec.metrics import TIME, Metric, format_value
from harness.spec.quantiles import median, middle_half

Array = NDArray[np.float64]

CONFIDENCE = 0.95
FEWEST_SAMPLES = 3
FEWEST_TURNS = 3
MOST_ROUNDS = 256
"""Largest number of rounds, or of turns of a round, that are compared individually.

The computation takes time in proportion to the square of their number.
"""


class Verdict(StrEnum):
    """Verdict on one metric of one cell, the most serious first."""

    WRONG = "WRONG"
    MISSING = "MISSING"
    SLOWER = "SLOWER"
    WORSE = "WORSE"
    HEAVIER = "HEAVIER"
    UNCLEAR = "UNCLEAR"
    FASTER = "FASTER"
    BETTER = "BETTER"
    LIGHTER = "LIGHTER"
    NEW = "NEW"
    SAME = "SAME"

    @property
    def rank(self) -> int:
        """Position in the order; zero for the most serious."""
        return list(Verdict).index(self)


# Names of a change for the worse and for the better, by the metric's unit.
WORDS = {
    "s": (Verdict.SLOWER, Verdict.FASTER),
    "bytes": (Verdict.HEAVIER, Verdict.LIGHTER),
}


@dataclass(frozen=True)
class Rule:
    """Parameters of the tests.

    Attributes
    ----------
    smallest
        Smallest relevant relative difference.
    alpha
        Probability of one or more false SLOWER or FASTER in a whole comparison.
    between_rounds
        Usual standard deviation of a cell's log time between processes, the prior of the moderated
        test; ``benchmarks/verdicts.py`` measures it.
    prior_weight
        Degrees of freedom of that prior.
    between_runs
        Standard deviation of log time between runs that did not take turns, due to changes of the
        machine.
    """

    smallest: float = TIME.tolerance
    alpha: float = 0.01
    between_rounds: float = 0.03
    prior_weight: float = 4.0
    between_runs: float = 0.02

    def rounds_needed(self, cells: int) -> int:
        """Rounds per side, in turns, that a signed-rank test over ``cells`` requires."""
        return math.ceil(1 + math.log2(cells / self.alpha))


@dataclass(frozen=True)
class Side:
    """One side of a comparison of one cell.

    Attributes
    ----------
    rounds
        Samples in order, in seconds, by the name of the round; only successful rounds. Sides that
        took turns have the same names.
    outcome
        The worst outcome of the rounds, one of ``OUTCOMES``.
    reason
        Reason if the outcome is not ``ok``.
    turns
        Number of samples per turn, in order, by the name of the round; only for rounds whose
        records contain it.
    remark
        Doubts about the samples, in words; may be empty.
    """

    rounds: Mapping[Any, Sequence[float]] = field(default_factory=dict)
    outcome: str = "ok"
    reason: str = ""
    turns: Mapping[Any, Sequence[int]] = field(default_factory=dict)
    remark: str = ""

    @property
    def samples(self) -> int:
        """Number of samples over all rounds."""
        return sum(map(len, self.rounds.values()))


@dataclass(frozen=True)
class Pair:
    """A cell before and after; None for a side that has not measured it.

    Attributes
    ----------
    took_turns
        Whether the sides were measured alternately in one run, so that their rounds form pairs.
    """

    before: Side | None
    after: Side | None
    took_turns: bool = False


@dataclass(frozen=True)
class Judgement:
    """A verdict with its evidence.

    Attributes
    ----------
    ratio, low, high
        After over before, and its 95 % confidence interval; NaN if there are no values to compare.
    p
        Two-sided p-value before the correction for many cells.
    test
        Name of the test of ``p``; empty without a test.
    """

    verdict: Verdict
    reason: str
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    test: str = ""


def worst_outcome(outcomes: Sequence[str]) -> str:
    """Return the worst of several rounds' outcomes."""
    return max(outcomes, key=[str(outcome) for outcome in OUTCOMES].index)


def percent(ratio: float) -> str:
    """Format a ratio as a change: ``+5.2 %`` up to a factor of two, ``2.3x`` beyond."""
    if ratio >= 2:
        return f"{ratio:.3g}x"
    if ratio <= 0.5:
        return f"1/{1 / ratio:.3g}" if ratio > 0 else "to zero"
    return f"{100 * (ratio - 1):+.1f} %"


def holm(p_values: Sequence[float]) -> Array:
    """Return Holm's adjusted p-values, each of which can be compared with alpha.

    Parameters
    ----------
    p_values
        One per hypothesis, in any order.

    Returns
    -------
    Array
        Adjusted values in the same order (Holm 1979, Scand. J. Statist. 6:65).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def judge(pairs: Sequence[Pair], rule: Rule = Rule()) -> list[Judgement]:
    """Judge the times of many cells together, with a correction for their number.

    Parameters
    ----------
    pairs
        One per cell.
    rule
        Parameters of the tests.

    Returns
    -------
    list[Judgement]
        In the order of ``pairs``.
    """
    judgements: list[Judgement | None] = [_judge_outcome(pair) for pair in pairs]
    timed = [i for i, found in enumerate(judgements) if found is None]
    evidence = _test_pairs([pairs[i] for i in timed], rule)
    adjusted = holm([e["p"] for e in evidence]) if timed else np.empty(0)
    for i, found, level in zip(timed, evidence, adjusted, strict=True):
        judgements[i] = _decide(pairs[i], found, float(level), len(timed), rule)
    return [judgement for judgement in judgements if judgement is not None]


def judge_metric(before: float | None, after: float | None, metric: Metric) -> Judgement:
    """Judge a number that hardly varies between rounds: memory, energy, an engine's error.

    Parameters
    ----------
    before, after
        The metric of each side, None if it was not measured.
    metric
        Has the direction and the tolerance, which is relative, or absolute without a unit.

    Returns
    -------
    Judgement
        SAME, the metric's name for an increase or decrease, or UNCLEAR if a value is missing.
    """
    if before is None or after is None:
        return Judgement(Verdict.UNCLEAR, f"no {metric.name} was recorded on one side")
    ratio = after / before if before > 0 else math.nan
    moved = f"from {format_value(before, metric.unit)} to {format_value(after, metric.unit)}"
    if metric.unit:
        allowed = f"{100 * metric.tolerance:g} %"
        smaller, larger = sorted((max(before, 0.0), max(after, 0.0)))
        same = larger <= smaller * (1 + metric.tolerance)
    else:
        allowed = f"{metric.tolerance:g}"
        same = abs(after - before) <= metric.tolerance
    if same:
        return Judgement(Verdict.SAME, f"{moved}, within the tolerance of {allowed}", ratio)
    worse, better = WORDS.get(metric.unit, (Verdict.WORSE, Verdict.BETTER))
    rose = after > before
    word = worse if rose == (metric.better == "lower") else better
    return Judgement(word, f"{moved}, beyond the tolerance of {allowed}", ratio)


def _judge_outcome(pair: Pair) -> Judgement | None:
    """Judge the outcomes; None if both sides have times to compare."""
    before, after = pair.before, pair.after
    if after is None:
        if before is not None and before.outcome != "ok":
            return Judgement(Verdict.SAME, f"no time before ({before.outcome}), not tried after")
        return Judgement(Verdict.MISSING, "measured before, not measured after")
    if after.outcome == "wrong":
        return Judgement(Verdict.WRONG, _with_reason("wrong results", after.reason))
    if before is None:
        return Judgement(Verdict.NEW, "not measured before")
    if after.outcome != "ok":
        if before.outcome == "ok":
            return Judgement(
                Verdict.MISSING, _with_reason(f"had a time, now {after.outcome}", after.reason)
            )
        return Judgement(Verdict.SAME, _with_reason(f"no time on either side: {after.outcome}", ""))
    if before.outcome != "ok":
        return Judgement(Verdict.NEW, f"now has a time; before: {before.outcome}")
    fewest = min(before.samples, after.samples)
    if fewest < FEWEST_SAMPLES:
        return Judgement(
            Verdict.UNCLEAR,
            f"too few samples: {fewest}, and a comparison needs {FEWEST_SAMPLES} a side",
        )
    return None


def _with_reason(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def _test_pairs(pairs: Sequence[Pair], rule: Rule) -> list[dict[str, Any]]:
    """Return effect, interval and p-value per pair; pairs of equal shape are computed together."""
    groups: dict[tuple[bool, int, int], list[int]] = defaultdict(list)
    series: list[tuple[list[float], list[float], float]] = []
    for i, pair in enumerate(pairs):
        assert pair.before is not None and pair.after is not None
        before, after = pair.before, pair.after
        common = sorted(before.rounds.keys() & after.rounds.keys()) if pair.took_turns else []
        # Rounds that failed on one side have no pair; without any pair, the sides took no turns.
        if common:
            changes = [_round_change(before, after, name) for name in common]
            old, new = [], [change for change, _ in changes]
            within = sum(variance for _, variance in changes) / len(changes)
        else:
            left, right = list(before.rounds.values()), list(after.rounds.values())
            within = max(_mean_variance_within(left), _mean_variance_within(right))
            old, new = ([math.log(median(r)) for r in rounds] for rounds in (left, right))
        old, new = _grouped(old), _grouped(new)
        series.append((old, new, within))
        groups[bool(common), len(old), len(new)].append(i)

    found: list[dict[str, Any]] = [{} for _ in pairs]
    needed = rule.rounds_needed(max(len(pairs), 1))
    for (turns, n_before, n_after), members in groups.items():
        x = np.array([series[i][0] for i in members])
        y = np.array([series[i][1] for i in members])
        noise = np.array([series[i][2] for i in members])
        if turns:
            columns = _test_turns(y, noise, rule, by_rank=n_after >= needed)
        else:
            columns = _test_separate_runs(x, y, noise, rule, len(pairs))
        test = columns.pop("test")
        rounds = n_after if turns else min(n_before, n_after)
        for k, i in enumerate(members):
            found[i] = {name: float(column[k]) for name, column in columns.items()}
            found[i] |= {"test": test, "turns": turns, "rounds": rounds}
    return found


def _round_change(before: Side, after: Side, name: Any) -> tuple[float, float]:
    """Return the change of log time in a round of both sides, and its variance within the round.

    Turns are compared if both sides have them, otherwise the medians of the round.
    """
    changes = [
        math.log(median(new) / median(old))
        for old, new in zip(_turns(before, name), _turns(after, name), strict=False)
        if old and new
    ]
    if len(changes) < FEWEST_TURNS:
        old, new = before.rounds[name], after.rounds[name]
        noise = _mean_variance_within([old]) + _mean_variance_within([new])
        return math.log(median(new) / median(old)), noise
    changes = _grouped(changes)
    low, high = middle_half(changes)
    return _hodges_lehmann(np.array([changes])).item(), _median_variance(high - low, len(changes))


def _turns(side: Side, name: Any) -> list[Sequence[float]]:
    """Return the samples of a round by turn; empty if the counts do not sum to the samples."""
    samples, counts = side.rounds[name], side.turns.get(name, ())
    if sum(counts) != len(samples):
        return []
    ends = list(accumulate(counts, initial=0))
    return [samples[start:stop] for start, stop in pairwise(ends)]


def _hodges_lehmann(d: Array) -> Array:
    """Return Hodges and Lehmann's estimate of the centre of each row of ``d``."""
    center: Array = np.median(_walsh(d), axis=1)
    return center


def _walsh(d: Array) -> Array:
    """Return the Walsh averages: of all pairs of values in each row, including equal pairs."""
    averages: Array = (d[:, :, None] + d[:, None, :])[:, *_pairs_of(d.shape[1])] / 2
    return averages


@lru_cache
def _pairs_of(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the first and of the second value of all pairs of n values."""
    return np.triu_indices(n)


def _grouped(values: list[float]) -> list[float]:
    """Replace groups of adjacent rounds by their median, so that at most ``MOST_ROUNDS`` remain.

    Rounds that took turns stay paired: both sides have the same number and the same groups.
    """
    if len(values) <= MOST_ROUNDS:
        return values
    edges = [k * len(values) // MOST_ROUNDS for k in range(MOST_ROUNDS + 1)]
    return [median(values[start:stop]) for start, stop in pairwise(edges)]


def _mean_variance_within(rounds: Sequence[Sequence[float]]) -> float:
    """Return the mean variance of the log median of a round."""
    total = 0.0
    for samples in rounds:
        low, high = middle_half(samples)
        total += _median_variance(math.log(high / low), len(samples))
    return total / len(rounds)


def _median_variance(distance: float, n: int) -> float:
    """Return the variance of the median of n values, from the distance of their quartiles.

    The median of n normal values has variance pi/2 sigma^2 / n. Sigma is the interquartile distance
    over 1.349, which is robust against outliers.
    """
    spread = distance / 1.349
    return math.pi / 2 * spread * spread / n


def _moderated(
    variance: Array, freedom: int, prior: Array | float, weight: float
) -> tuple[Array, Array]:
    """Return observed variances shrunk to the prior (Smyth 2004, eq. 3), and degrees of freedom.

    Variances are only increased. If they exceed the prior, the machine is noisier than usual, and
    the observed values are used.
    """
    noisy = variance > prior
    shrunk = (weight * prior + freedom * variance) / (weight + freedom)
    return np.where(noisy, variance, shrunk), np.where(noisy, freedom, freedom + weight)


def _test_turns(d: Array, within: Array, rule: Rule, by_rank: bool) -> dict[str, Any]:
    """Test changes of log time ``d``, (cells, rounds), with their variance within a round."""
    n = d.shape[1]
    if by_rank:
        walsh = np.sort(_walsh(d), axis=1)
        k = _walsh_cut(n)
        return {
            "effect": np.median(walsh, axis=1),
            "low": walsh[:, k],
            "high": walsh[:, -1 - k],
            "p": signed_rank_p(d),
            "test": "signed-rank test over rounds",
        }
    prior = 2 * rule.between_rounds**2 + within
    spread = d.var(axis=1, ddof=1) if n > 1 else np.zeros(len(d))
    variance, freedom = _moderated(spread, n - 1, prior, rule.prior_weight)
    return _t_columns(_hodges_lehmann(d), np.sqrt(variance / n), freedom)


def _test_separate_runs(
    x: Array, y: Array, within: Array, rule: Rule, cells: int
) -> dict[str, Any]:
    """Test log times of two separate runs, (cells, rounds before) and (cells, rounds after)."""
    n, m = x.shape[1], y.shape[1]
    squares = n * x.var(axis=1) + m * y.var(axis=1)
    freedom = n + m - 2
    spread = squares / freedom if freedom else np.zeros(len(x))
    prior = rule.between_rounds**2 + within
    variance, weight = _moderated(spread, freedom, prior, rule.prior_weight)
    error = np.sqrt(variance * (1 / n + 1 / m) + 2 * rule.between_runs**2)
    effect = np.median((y[:, :, None] - x[:, None, :]).reshape(len(x), -1), axis=1)
    columns = _t_columns(effect, error, weight)
    if 2 / math.comb(n + m, n) <= rule.alpha / cells:
        columns["p"] = np.maximum(columns["p"], mann_whitney_p(x, y))
        columns["test"] = "Mann-Whitney and moderated t-test over rounds"
    return columns


def _t_columns(effect: Array, error: Array, freedom: Array) -> dict[str, Any]:
    """Return interval and p-value of an effect with a standard error, by Student's t."""
    from scipy import special  # scipy.stats takes longer to import than a comparison takes

    half = special.stdtrit(freedom, 0.5 + CONFIDENCE / 2) * error
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "p": 2 * special.stdtr(freedom, -np.abs(effect) / error),
        "test": "moderated t-test over rounds",
    }


def signed_rank_p(d: Array) -> Array:
    """Exact two-sided p-values of Wilcoxon's signed-rank test.

    They need six lines, because ``_walsh_cut`` requires the exact distribution for the interval,
    and SciPy does not offer it.

    Parameters
    ----------
    d
        Paired differences, (tests, pairs). A difference of zero counts half for each side.
    """
    ranks = np.abs(d).argsort(axis=1).argsort(axis=1) + 1
    positive = (ranks * (d > 0)).sum(axis=1) + 0.5 * (ranks * (d == 0)).sum(axis=1)
    tail = _signed_rank_tail(d.shape[1])
    extreme = np.ceil(np.minimum(positive, len(tail) - 1 - positive)).astype(int)
    p: Array = np.minimum(1.0, 2 * tail[extreme])
    return p


def mann_whitney_p(x: Array, y: Array) -> Array:
    """Exact two-sided p-values of the Mann-Whitney test.

    Parameters
    ----------
    x, y
        Samples, (tests, n) and (tests, m). A tie counts half for each side.
    """
    from scipy import stats  # imported here, because other comparisons take less than its import

    p: Array = stats.mannwhitneyu(x, y, axis=1, method="exact").pvalue
    return p


@lru_cache
def _signed_rank_tail(n: int) -> Array:
    """Return P(W <= w) for w = 0 … n (n + 1) / 2: each rank is added with probability 1/2."""
    counts = np.ones(1)
    for rank in range(1, n + 1):
        # Probabilities instead of counts, which overflow for more than a thousand rounds.
        counts = (np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))) / 2
    return np.cumsum(counts)


def _walsh_cut(n: int) -> int:
    """Return the number of Walsh averages to drop at each end for a 95 % interval from n pairs.

    The interval inverts the signed-rank test: its ends are the order statistics at the largest k
    with P(W < k) <= (1 - confidence) / 2.
    """
    return int(np.searchsorted(_signed_rank_tail(n), (1 - CONFIDENCE) / 2, side="right"))


def _decide(
    pair: Pair, found: dict[str, Any], adjusted: float, cells: int, rule: Rule
) -> Judgement:
    """Return the verdict on one cell and its reason."""
    ratio, low, high = (math.exp(found[key]) for key in ("effect", "low", "high"))
    limit = math.log1p(rule.smallest)
    evidence = (
        f"{percent(ratio)} (95 % interval {percent(low)} to {percent(high)}), "
        f"{found['rounds']} round{'s' if found['rounds'] > 1 else ''} a side"
    )
    if adjusted <= rule.alpha and abs(found["effect"]) >= limit:
        verdict = Verdict.SLOWER if ratio > 1 else Verdict.FASTER
        reason = f"{evidence}; chance of a false alarm under {rule.alpha:.0%}"
    elif -limit <= found["low"] and found["high"] <= limit:
        verdict = Verdict.SAME
        reason = f"{evidence}; within the {rule.smallest:.0%} that matters"
    else:
        verdict = Verdict.UNCLEAR
        reason = f"{evidence}; {_what_would_settle(found, cells, rule)}"
    for name, side in (("before", pair.before), ("after", pair.after)):
        if side is not None and side.remark:
            reason += f"; {name}, {side.remark}"
    return Judgement(verdict, reason, ratio, low, high, found["p"], found["test"])


def _what_would_settle(found: dict[str, Any], cells: int, rule: Rule) -> str:
    needed = rule.rounds_needed(cells)
    if not found["turns"]:
        return (
            "the runs did not take turns, so the machine may have changed between them; "
            f"`run --against COMMIT --repeats {needed}` would settle it"
        )
    if found["rounds"] < needed:
        return f"`--repeats {needed}` would settle it"
    return f"the rounds disagree too much; `--repeats {2 * found['rounds']}` would narrow it"
