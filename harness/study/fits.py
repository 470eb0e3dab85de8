"""Power laws through measured points, and where two curves cross."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x ** exponent``, fitted by least squares to the logarithms.

    Attributes
    ----------
    factor, exponent : float
    low, high : float
        Ends of the exponent's 95 % interval by Student's t; infinite with two points.
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
        return self.factor * x**self.exponent

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"exponent {self.exponent:.2f} (two points, no interval)"
        return f"exponent {self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})"


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit a power law; None with fewer than two different abscissae or without positive values.

    Parameters
    ----------
    x, y : sequence of float
        Points with a value that is not positive or not finite are left out.
    """
    points = [
        (math.log(a), math.log(b))
        for a, b in zip(x, y, strict=True)
        if a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b)
    ]
    if len({a for a, _ in points}) < 2:
        return None
    fit = stats.linregress(*np.array(points).T)
    free = len(points) - 2
    half = stats.t.ppf((1 + CONFIDENCE) / 2, free) * fit.stderr if free else math.inf
    slope = float(fit.slope)
    return PowerLaw(
        math.exp(fit.intercept), slope, slope - float(half), slope + float(half), len(points)
    )


def crossing(x: Sequence[float], below: Sequence[float], above: Sequence[float]) -> float | None:
    """Return the first abscissa at which one curve overtakes another.

    Parameters
    ----------
    x : sequence of float
        Positive, ascending.
    below, above : sequence of float
        Positive values of two curves; the first lies below the second at the start.

    Returns
    -------
    float or None
        Where ``below`` first exceeds ``above``, both interpolated by powers between the points;
        None if it never does or lies above from the start.
    """
    gaps = [math.log(a / b) for a, b in zip(below, above, strict=True)]
    if not gaps or gaps[0] > 0:
        return None
    for i in range(1, len(gaps)):
        if gaps[i] > 0:
            share = -gaps[i - 1] / (gaps[i] - gaps[i - 1])
            return math.exp(math.log(x[i - 1]) + share * math.log(x[i] / x[i - 1]))
    return None
