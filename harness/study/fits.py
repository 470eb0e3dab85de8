"""Power-law fits to measured points, and crossings of two curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

MIN_POINTS = 3
"""Least number of points of a fit: two points leave no degree of freedom for an interval."""


@dataclass(frozen=True)
class PowerLaw:
    """A power law ``y = factor * x ** exponent``, fitted by least squares to the logarithms.

    Attributes
    ----------
    factor, exponent : float
        Parameters of the law.
    low, high : float
        Ends of the 95 % confidence interval of the exponent (Student's t).
    points : int
        Number of points.
    """

    factor: float
    exponent: float
    low: float
    high: float
    points: int

    def __call__(self, x: float) -> float:
        """Return the fitted value."""
        return float(self.factor * x**self.exponent)

    def __str__(self) -> str:
        return f"exponent {self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})"


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit a power law to points.

    Parameters
    ----------
    x, y : sequence of float
        Coordinates. Points with a coordinate that is not positive or not finite are ignored.

    Returns
    -------
    PowerLaw or None
        None for fewer than ``MIN_POINTS`` different abscissae.
    """
    points = [
        (math.log(a), math.log(b))
        for a, b in zip(x, y, strict=True)
        if a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b)
    ]
    if len({a for a, _ in points}) < MIN_POINTS:
        return None
    fit = stats.linregress(*np.array(points).T)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * fit.stderr)
    slope = float(fit.slope)
    return PowerLaw(math.exp(fit.intercept), slope, slope - half, slope + half, len(points))


def crossing(x: Sequence[float], below: Sequence[float], above: Sequence[float]) -> float | None:
    """Return the first abscissa at which one curve exceeds another.

    Parameters
    ----------
    x : sequence of float
        Positive values in ascending order.
    below, above : sequence of float
        Positive values of two curves; ``below`` is the lower one at the start.

    Returns
    -------
    float or None
        Abscissa at which ``below`` first exceeds ``above``, by power-law interpolation between the
        points; None if ``below`` never exceeds ``above`` or does so from the start.
    """
    gaps = [math.log(a / b) for a, b in zip(below, above, strict=True)]
    if not gaps or gaps[0] > 0:
        return None
    for i in range(1, len(gaps)):
        if gaps[i] > 0:
            share = -gaps[i - 1] / (gaps[i] - gaps[i - 1])
            return math.exp(math.log(x[i - 1]) + share * math.log(x[i] / x[i - 1]))
    return None
