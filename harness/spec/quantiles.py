"""Median and quartiles, defined once, without NumPy's cost per call on short series."""

from __future__ import annotations

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Return the median of a non-empty sequence."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return 0.5 * (ordered[middle - 1] + ordered[middle])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile of a non-empty sequence.

    They are interpolated linearly, as ``numpy.quantile`` does.
    """
    ordered = sorted(values)
    return _at(ordered, 0.25), _at(ordered, 0.5), _at(ordered, 0.75)


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the values at the ranks nearest to the quartiles of a non-empty sequence.

    For spreads of the few values of a verdict: both are values that occurred, never interpolated
    between a disturbed and an undisturbed one.
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[last // 4], ordered[(3 * last + 2) // 4]


def _at(ordered: Sequence[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    step = ordered[above] - ordered[below]
    part = place - below
    # From the nearer end, as NumPy does, so that the last digit is the same.
    return ordered[above] - step * (1 - part) if part >= 0.5 else ordered[below] + step * part
