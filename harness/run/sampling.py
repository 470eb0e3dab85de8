"""Rules of sampling: when to stop, when a warm-up has settled, and the order of turns.

Pure functions of the samples taken so far, in order, in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from harness.spec.quantiles import median, quartiles

Stop = Literal["spread", "samples", "budget"]
Item = TypeVar("Item")

LEAST_SAMPLES = 3
"""Fewest samples from which a spread is estimated, whatever the budget."""

TURN_SECONDS = 0.1
"""Duration of one worker's sampling before the next worker takes its turn."""

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
        Fewest samples after which the spread may end the sampling.
    most : int
        Number of samples that ends the sampling whatever their spread.
    budget : float
        Longest time of sampling, in seconds.
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
    low, _, high = quartiles(samples)
    return 1.57 * (high - low) / math.sqrt(len(samples)) / middle if middle > 0 else 0.0


def has_drift(samples: Sequence[float]) -> bool:
    """Return whether the medians of the two halves differ by more than their intervals allow."""
    middle = len(samples) // 2
    early, late = samples[:middle], samples[middle:]
    if len(early) < LEAST_SAMPLES:
        return False
    allowed = half_width(early) * median(early) + half_width(late) * median(late)
    return abs(median(early) - median(late)) > max(allowed, NEGLIGIBLE * median(samples))


def stop_reason(samples: Sequence[float], elapsed: float, rule: StopRule) -> Stop | None:
    """Return why the sampling may stop.

    Parameters
    ----------
    samples : sequence of float
        In order, in seconds.
    elapsed : float
        Time spent on sampling so far, in seconds.
    rule : StopRule
        The targets.

    Returns
    -------
    str or None
        ``spread`` (the interval has reached the target and the series does not drift), ``samples``
        (there are enough), ``budget`` (the time is over), or None to go on.
    """
    count = len(samples)
    if count >= max(rule.least, LEAST_SAMPLES):
        if half_width(samples) <= rule.spread and not has_drift(samples):
            return "spread"
        if count >= rule.most:
            return "samples"
    if elapsed >= rule.budget and count >= LEAST_SAMPLES:
        return "budget"
    return None


def has_settled(samples: Sequence[float], *, window: int = 3, tolerance: float = 0.05) -> bool:
    """Return whether a warm-up has settled.

    It has if the fastest of the last ``window`` calls is not faster, beyond the tolerance, than the
    fastest of the ``window`` calls before.
    """
    if len(samples) < 2 * window:
        return False
    before, last = min(samples[-2 * window : -window]), min(samples[-window:])
    return last >= before * (1 - tolerance)


def outliers(samples: Sequence[float]) -> list[int]:
    """Return the positions of samples more than three robust deviations from the median.

    They are flagged, never removed. The robust deviation is 1.4826 times the median absolute
    deviation.
    """
    if len(samples) < LEAST_SAMPLES:
        return []
    middle = median(samples)
    scale = 1.4826 * median([abs(sample - middle) for sample in samples])
    return [i for i, sample in enumerate(samples) if abs(sample - middle) > 3 * scale > 0]


def turn_order(items: Sequence[Item], seed: int, turn: int) -> list[Item]:
    """Return the order of one turn: a seeded shuffle, every second turn reversed (ABBA).

    Turns 0 and 1, 2 and 3, … are mirror images, so that a linear drift of the machine within a
    pair of turns affects all items alike.
    """
    order = list(items)
    random.Random(f"{seed} {turn // 2}").shuffle(order)
    return order[::-1] if turn % 2 else order
