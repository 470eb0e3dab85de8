"""Precision and recall of change points in synthetic histories: ours, asv's and those of ruptures.

Each history has 200 commits with 3 % noise, and one or two steps of 5, 10 or 30 % up or down, a
drift, single outliers, or a change of machine in the middle, which splits the series. A reported
step is right if the true one is in its range of commits, and the range has at most ten commits.

    python benchmarks/history.py
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.history.change_points import (
    SHORTEST,
    ChangePoint,
    Detector,
    detect_change_points,
    noise_of,
    segments_by_least_squares,
)

COMMITS = 200
NOISE = 0.03
SMALLEST = 0.03
LONGEST_RANGE = 10


@dataclass(frozen=True)
class History:
    """A synthetic history: its parts by machine, and the positions of the true steps per part."""

    kind: str
    parts: list[np.ndarray]
    steps: list[list[int]]


def made_up(rng: np.random.Generator, count: int) -> list[History]:
    """Return histories of every kind, ``count`` of each."""

    def noise(n: int = COMMITS) -> np.ndarray:
        return rng.normal(0, NOISE, n)

    def stepped(size: float, number: int) -> History:
        places = sorted(rng.choice(np.arange(1, COMMITS // 20), number, replace=False) * 20)
        places = [int(p + rng.integers(-5, 6)) for p in places]
        y = noise()
        for place in places:
            y[place:] += np.log1p(size) * rng.choice([-1, 1])
        return History(f"step {100 * size:g} %", [y], [places])

    found = []
    for _ in range(count):
        found += [stepped(size, number) for size in (0.05, 0.1, 0.3) for number in (1, 2)]
        found.append(History("constant", [noise()], [[]]))
        drift = np.linspace(0, np.log1p(rng.choice([-0.15, 0.15])), COMMITS)
        found.append(History("drift", [noise() + drift], [[]]))
        y = noise()
        y[rng.choice(COMMITS, 5, replace=False)] += np.log(rng.uniform(1.3, 3, 5))
        found.append(History("outliers", [y], [[]]))
        half = COMMITS // 2
        other = np.log(rng.choice([0.6, 1.5]))
        found.append(History("machine change", [noise(half), noise(half) + other], [[], []]))
    return found


def by_potts() -> Detector:
    """Return asv's fit, whose penalty follows from an information criterion."""
    from asv.step_detect import detect_steps

    return lambda y: [int(left) for left, *_ in detect_steps(list(y))][1:]


def by_pelt() -> Detector:
    """Return ruptures' segmentation by least squares, with the penalty of ``change_points``."""
    import ruptures

    def detect(y: np.ndarray) -> list[int]:
        scaled = y / noise_of(y)
        algorithm = ruptures.Pelt(model="l2", min_size=SHORTEST, jump=1).fit(scaled)
        return algorithm.predict(pen=3 * np.log(len(y)))[:-1]

    return detect


def score(histories: list[History], detector: Detector) -> dict[str, list[int]]:
    """Return the numbers of right, false and missed steps by kind of history."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for history in histories:
        for y, true in zip(history.parts, history.steps, strict=True):
            found = detect_change_points(np.exp(y).tolist(), SMALLEST, detector=detector)
            right = sum(any(_is(step, place) for step in found.changes) for place in true)
            tally = counts[history.kind]
            tally[0] += right
            tally[1] += len(found.changes) - right
            tally[2] += len(true) - right
    return counts


def _is(step: ChangePoint, place: int) -> bool:
    return step.first <= place <= step.last and step.last - step.first <= LONGEST_RANGE


def main(
    count: Annotated[int, typer.Option(help="Histories of each kind.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Print precision and recall of each detector by kind of history."""
    histories = made_up(np.random.default_rng(seed), count)
    detectors: dict[str, Callable[[], Detector]] = {
        "least squares, as `history` uses it": lambda: segments_by_least_squares,
        "asv's L1 Potts fit": by_potts,
        "ruptures' Pelt": by_pelt,
    }
    for name, make in detectors.items():
        began = time.perf_counter()
        try:
            counts = score(histories, make())
        except ImportError:
            print(f"{name}: not installed")
            continue
        took = time.perf_counter() - began
        print(f"{name} ({1000 * took / len(histories):.0f} ms a history)")
        for kind, (right, false, missed) in counts.items():
            if right + missed:
                precision = right / (right + false) if right + false else float("nan")
                print(
                    f"  {kind:15} precision {precision:.3f}  recall {right / (right + missed):.3f}"
                    f"  ({right + missed} true, {right} right, {false} false)"
                )
            else:
                print(f"  {kind:15} {false} false alarms in {count} histories")


if __name__ == "__main__":
    typer.run(main)
