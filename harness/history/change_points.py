"""Change-point detection in series of measurements over commits.

Single outliers are removed first. A detector then proposes where segments of constant level begin,
and proposals that noise explains are dropped, the weakest first. A series that a straight line
describes better than constant segments has a drift instead of change points.

Levels are compared as logarithms, so that a doubling and a halving are equally large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Proposes the first index of each segment except the first one.
Detector = Callable[[Array], list[int]]

SHORTEST = 3
"""Fewest points of a segment; fewer deviating points are outliers until a third confirms them."""

NEIGHBOURS = 3
"""Points on either side with which a point is compared to decide whether it is an outlier."""

OUTLYING = 4.0
"""Robust standard deviations from the neighbours' median beyond which a point is an outlier."""

LIKELIHOOD_DROP = 4.0
"""Fall of the log likelihood within which another position of a change point is as plausible."""


@dataclass(frozen=True)
class ChangePoint:
    """A change of level.

    Attributes
    ----------
    first, last
        Indices of the earliest and the latest point that may be the first of the new level.
    ratio
        New level over old level.
    confidence
        One minus the probability that noise produces such a change anywhere in the series.
    """

    first: int
    last: int
    ratio: float
    confidence: float


@dataclass(frozen=True)
class Drift:
    """A steady change over a whole series: the ratio of its end to its beginning."""

    ratio: float
    confidence: float


@dataclass(frozen=True)
class ChangePoints:
    """The result of change-point detection on one series.

    Attributes
    ----------
    levels
        Segments of constant level: first index, index after the last, value.
    changes
        The changes between the segments.
    drift
        A steady change instead of change points, or None.
    outliers
        Indices of the points that were left out as outliers.
    """

    levels: list[tuple[int, int, float]]
    changes: list[ChangePoint]
    drift: Drift | None
    outliers: list[int]


def segments_by_least_squares(y: Array) -> list[int]:
    """Propose the change points of the piecewise constant fit with the least penalised squares.

    Optimal partitioning (Jackson et al. 2005, doi:10.1109/LSP.2001.838216) in units of the noise;
    each change point costs three times the logarithm of the series length, and a segment has at
    least ``SHORTEST`` points.
    """
    n, scaled = len(y), y / noise_of(y)
    sums = np.concatenate([[0.0], np.cumsum(scaled)])
    squares = np.concatenate([[0.0], np.cumsum(scaled**2)])
    penalty = 3 * math.log(n)
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    begin = np.zeros(n + 1, dtype=int)
    for end in range(SHORTEST, n + 1):
        left = np.arange(end - SHORTEST + 1)
        total = sums[end] - sums[left]
        cost = best[left] + squares[end] - squares[left] - total**2 / (end - left) + penalty
        begin[end] = int(np.argmin(cost))
        best[end] = cost[begin[end]]
    starts, end = [], n
    while begin[end]:
        end = int(begin[end])
        starts.append(end)
    return starts[::-1]


def detect_change_points(
    values: Sequence[float],
    smallest: float,
    alpha: float = 0.01,
    detector: Detector = segments_by_least_squares,
) -> ChangePoints:
    """Find the change points of a series.

    Parameters
    ----------
    values
        Positive measurements in the order of commits.
    smallest
        Smallest relative change that matters.
    alpha
        Probability of a false change point in a whole series that is constant with noise.
    detector
        Proposes the change points.

    Returns
    -------
    ChangePoints
        Indices are those of ``values``.
    """
    y = np.log(np.asarray(values, dtype=float))
    outlying = outliers(y)
    kept = np.flatnonzero(~outlying)
    quiet = y[kept]
    if len(quiet) < 2 * SHORTEST:
        return ChangePoints(_levels(y, kept, []), [], None, np.flatnonzero(outlying).tolist())
    noise = noise_of(quiet)
    starts = prune(
        [s for s in detector(quiet) if 0 < s < len(quiet)], quiet, noise, smallest, alpha
    )
    drift = _drift(quiet, starts, noise, smallest, alpha)
    if drift is not None:
        starts = []
    edges = [0, *starts, len(quiet)]
    changes = []
    for left, start, right in zip(edges, starts, edges[2:], strict=False):
        first, last = _range(quiet, left, start, right, noise)
        effect, p = _effect(quiet, left, start, right, noise)
        changes.append(
            ChangePoint(int(kept[first]), int(kept[last]), math.exp(effect), 1 - min(1.0, p))
        )
    return ChangePoints(_levels(y, kept, starts), changes, drift, np.flatnonzero(outlying).tolist())


def outliers(y: Array) -> NDArray[np.bool_]:
    """Mark points far from the median of their neighbours on either side.

    A point is kept if two of its neighbours on one side have its level, since it then belongs to
    a new segment.
    """
    n = len(y)
    if n < 2 * NEIGHBOURS + 1:
        return np.zeros(n, dtype=bool)
    limit = OUTLYING * noise_of(y)
    marked = np.zeros(n, dtype=bool)
    for i in range(n):
        before = y[max(0, i - NEIGHBOURS) : i]
        after = y[i + 1 : i + 1 + NEIGHBOURS]
        far = abs(y[i] - np.median(np.concatenate([before, after]))) > limit
        alone = all(np.count_nonzero(np.abs(side - y[i]) <= limit) < 2 for side in (before, after))
        marked[i] = far and alone
    return marked


def noise_of(y: Array) -> float:
    """Robust standard deviation of the noise, from the differences of successive points.

    Changes of level and drifts hardly affect the differences; the median absolute difference over
    0.6745 sqrt(2) is the standard deviation of normal noise.
    """
    found = float(np.median(np.abs(np.diff(y)))) / (0.6745 * math.sqrt(2))
    return max(found, 1e-4)  # a counter that never varies, such as bytes, has no noise to test by


def prune(
    starts: Sequence[int], y: Array, noise: float, smallest: float, alpha: float
) -> list[int]:
    """Drop proposed change points, the weakest first, until noise explains none of the rest."""
    kept = sorted(set(starts))
    while kept:
        edges = [0, *kept, len(y)]
        weights = []
        for left, start, right in zip(edges, kept, edges[2:], strict=False):
            effect, p = _effect(y, left, start, right, noise)
            short = min(start - left, right - start) < SHORTEST
            weak = short or p > alpha or abs(effect) < math.log1p(smallest)
            weights.append((weak, min(start - left, right - start) >= SHORTEST, -abs(effect)))
        worst = max(
            range(len(kept)), key=lambda k: (weights[k][0], not weights[k][1], weights[k][2])
        )
        if not weights[worst][0]:
            break
        del kept[worst]
    return kept


def _effect(y: Array, left: int, start: int, right: int, noise: float) -> tuple[float, float]:
    """Change of level, and the probability that noise produces one as large anywhere.

    The position was chosen among all positions of the series, which gives the factor of its length.
    """
    before, after = y[left:start], y[start:right]
    effect = float(np.median(after) - np.median(before))
    # Medians of normal samples vary by pi/2 more than means.
    error = noise * math.sqrt(math.pi / 2 * (1 / len(before) + 1 / len(after)))
    return effect, len(y) * math.erfc(abs(effect) / error / math.sqrt(2))


def _range(y: Array, left: int, start: int, right: int, noise: float) -> tuple[int, int]:
    """First and last plausible position of a change, by the likelihood of the two levels."""
    low, high = np.median(y[left:start]), np.median(y[start:right])
    # A point counts for the side that it is nearer to; the cap limits the weight of one outlier.
    gain = ((y[left:right] - high) ** 2 - (y[left:right] - low) ** 2) / (2 * noise**2)
    gain = np.clip(gain, -8.0, 8.0)
    likelihood = np.concatenate([[0.0], np.cumsum(gain)])[1:-1]
    good = np.flatnonzero(likelihood >= likelihood.max() - LIKELIHOOD_DROP) + left + 1
    return min(int(good[0]), start), max(int(good[-1]), start)


def _levels(
    y: Array, kept: NDArray[np.intp], starts: Sequence[int]
) -> list[tuple[int, int, float]]:
    """Segments in the indices of the whole series, with their median as level."""
    if not len(kept):
        return []
    edges = [0, *starts, len(kept)]
    levels = []
    for left, right in pairwise(edges):
        end = int(kept[right]) if right < len(kept) else len(y)
        begin = int(kept[left]) if left else 0
        levels.append((begin, end, math.exp(float(np.median(y[kept[left:right]])))))
    return levels


def _drift(
    y: Array, starts: Sequence[int], noise: float, smallest: float, alpha: float
) -> Drift | None:
    """A straight line, if it is significant and describes the series better than the segments."""
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float((x * y).sum() / (x * x).sum())
    total = slope * (len(y) - 1)
    p = math.erfc(abs(slope) * math.sqrt(float((x * x).sum())) / noise / math.sqrt(2))
    if p > alpha or abs(total) < math.log1p(smallest):
        return None
    line = y - y.mean() - slope * x
    edges = [0, *starts, len(y)]
    flat = np.concatenate([y[a:b] - np.median(y[a:b]) for a, b in pairwise(edges)])
    if _criterion(line, 2, noise) < _criterion(flat, 1 + 2 * len(starts), noise):
        return Drift(math.exp(total), 1 - p)
    return None


def _criterion(residual: Array, parameters: int, noise: float) -> float:
    """Schwarz's information criterion, with residuals capped to limit the weight of outliers."""
    capped = np.minimum((residual / noise) ** 2, 9.0)
    return float(capped.sum()) + parameters * math.log(len(residual))
