"""How many samples are enough, when the warm-up is over, and in which order cells take turns.

Pure functions of the samples taken so far, in order, in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

Stop = Literal["spread", "samples", "budget"]
Item = TypeVar("Item")

LEAST_SAMPLES = 3
"""Below this many nothing can be said about the spread, whatever the budget."""

NEGLIGIBLE = 0.002
"""A relative drift that no comparison could notice."""


@dataclass(frozen=True)
class StopRule:
    """When to stop taking samples of a cell.

    Attributes
    ----------
    spread : float
        Target for the relative half width of the median's interval.
    least : int
        Samples before the spread may stop the sampling.
    most : int
        Samples that are enough whatever their spread.
    budget : float
        Seconds of sampling after which it ends.
    """

    spread: float = 0.01
    least: int = 7
    most: int = 200
    budget: float = 10.0


def half_width(samples: Sequence[float]) -> float:
    """Return the half width of the median's 95 % interval, relative to the median.

    1.57 IQR / sqrt(n) (McGill, Tukey and Larsen 1978, doi:10.2307/2683468), which needs no normal
    distribution and shrinks as samples come in. Infinite for fewer than ``LEAST_SAMPLES``.
    """
    if len(samples) < LEAST_SAMPLES:
        return math.inf
    middle = median(samples)
    low, high = quartiles(samples)
    return 1.57 * (high - low) / math.sqrt(len(samples)) / middle if middle > 0 else 0.0


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile, interpolated linearly."""
    ordered = sorted(samples)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.25), at(0.75)


def drifts(samples: Sequence[float]) -> bool:
    """Say whether the two halves of a series disagree by more than their intervals allow."""
    middle = len(samples) // 2
    early, late = samples[:middle], samples[middle:]
    if len(early) < LEAST_SAMPLES:
        return False
    allowed = half_width(early) * median(early) + half_width(late) * median(late)
    return abs(median(early) - median(late)) > max(allowed, NEGLIGIBLE * median(samples))


def stop(samples: Sequence[float], elapsed: float, rule: StopRule) -> Stop | None:
    """Decide whether to stop, and why.

    Parameters
    ----------
    samples : sequence of float
        In order, in seconds.
    elapsed : float
        Seconds spent on sampling so far.
    rule : StopRule
        The targets.

    Returns
    -------
    str or None
        ``spread`` (the median is known to the target and the series does not drift), ``samples``
        (there are enough), ``budget`` (the time is spent), or None to go on.
    """
    count = len(samples)
    if count >= max(rule.least, LEAST_SAMPLES):
        if half_width(samples) <= rule.spread and not drifts(samples):
            return "spread"
        if count >= rule.most:
            return "samples"
    if elapsed >= rule.budget and count >= LEAST_SAMPLES:
        return "budget"
    return None


def warm(samples: Sequence[float], *, window: int = 3, tolerance: float = 0.05) -> bool:
    """Say whether a warm-up has settled.

    The best of the last ``window`` calls is no longer faster, beyond the tolerance, than the best
    of the ``window`` calls before.
    """
    if len(samples) < 2 * window:
        return False
    before, last = min(samples[-2 * window : -window]), min(samples[-window:])
    return last >= before * (1 - tolerance)


def outliers(samples: Sequence[float]) -> list[int]:
    """Return the positions of samples more than three robust deviations from the median.

    They are flagged, never removed. The deviation is 1.4826 times the median absolute deviation.
    """
    if len(samples) < LEAST_SAMPLES:
        return []
    middle = median(samples)
    scale = 1.4826 * median(abs(sample - middle) for sample in samples)
    return [i for i, sample in enumerate(samples) if abs(sample - middle) > 3 * scale > 0]


def turns(items: Sequence[Item], seed: int, turn: int) -> list[Item]:
    """Return the order of one turn: a seeded shuffle, every second turn reversed (ABBA).

    Turns 0 and 1, 2 and 3, … mirror each other, so that a linear drift of the machine within a
    pair of turns hits all items alike.
    """
    order = list(items)
    random.Random(f"{seed} {turn // 2}").shuffle(order)
    return order[::-1] if turn % 2 else order
