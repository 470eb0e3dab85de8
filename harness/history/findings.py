"""Changes in the series of a history: what got slower or larger, where, and how surely."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harness.history.change_points import SHORTEST, ChangePoints, detect_change_points
from harness.history.series import Key, Point, finite, level_values
from harness.results.environment import changed_versions
from harness.results.verdict import WORDS, Verdict, percent
from harness.spec.metrics import TIME


@dataclass(frozen=True)
class Change:
    """One change of a series.

    Attributes
    ----------
    verdict
        SLOWER, HEAVIER, … for a change point or a drift; MISSING for a cell without a time.
    commits
        Range of commits that contains the cause, in git's notation: ``good..bad``, where ``good``
        is excluded.
    ratio
        Level after over level before; NaN for MISSING.
    gradual
        Whether it is a drift over the whole range.
    confidence
        One minus the probability that noise is the cause; NaN for MISSING.
    note
        Other changes in that range: versions of the engine or of torch, environments.
    """

    verdict: Verdict
    commits: str
    ratio: float
    gradual: bool
    confidence: float
    note: str

    @property
    def words(self) -> str:
        """The change as one short sentence."""
        if self.verdict is Verdict.MISSING:
            return f"MISSING since {self.commits}: {self.note}"
        how = "drifted" if self.gradual else "changed"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.verdict}: {how} by {percent(self.ratio)} in {self.commits}, "
            f"confidence {format_confidence(self.confidence)}{note}"
        )


@dataclass(frozen=True)
class SeriesChanges:
    """A series with its changes.

    Attributes
    ----------
    severity
        Logarithm of the latest level over the best level before it, positive if the latest level
        is worse. Infinite if the cell has no time any more.
    """

    key: Key
    points: list[Point]
    change_points: ChangePoints
    changes: list[Change]
    severity: float

    @property
    def environment_changes(self) -> list[tuple[int, str]]:
        """Indices of the points where a version or the environment changed, and how."""
        return [
            (i, change)
            for i in range(1, len(self.points))
            if (change := _environment_change(self.points[i - 1], self.points[i]))
        ]

    @property
    def disturbed(self) -> list[int]:
        """Indices of the times and energies that a throttled GPU or a busy host has disturbed."""
        if self.key.metric.unit not in ("s", "J"):
            return []
        return [i for i, p in enumerate(self.points) if p.disturbed and p.value is not None]

    @property
    def has_history(self) -> bool:
        """Whether the series covers more than one commit."""
        return len({point.commit for point in self.points}) > 1


def format_confidence(confidence: float) -> str:
    """Format a confidence in percent; close to 1 it reads ``over 99.9 %``, never ``100 %``."""
    return "over 99.9 %" if confidence > 0.999 else f"{100 * confidence:.1f} %"


def _environment_change(before: Point, after: Point) -> str:
    """Name what differs between the environments of two points; empty if nothing does."""
    names = before.environment, after.environment
    return ", ".join(changed_versions(before.versions, after.versions, *names))


def find_changes(key: Key, points: Sequence[Point]) -> SeriesChanges:
    """Find the changes of one series.

    Parameters
    ----------
    key
        The identity of the series.
    points
        In the order of commits.
    """
    valued = finite(points)
    smallest = key.metric.tolerance if key.metric.unit else TIME.tolerance
    found = detect_change_points(level_values(points, key.metric), smallest)
    changes = [
        Change(
            verdict_of(key, point.ratio),
            _range(valued, point.first - 1, point.last),
            point.ratio,
            False,
            point.confidence,
            _changes_within(valued[max(point.first - 1, 0) : point.last + 1]),
        )
        for point in found.changes
    ]
    if found.drift is not None:
        ends = _range(valued, 0, len(valued) - 1)
        changes.append(
            Change(
                verdict_of(key, found.drift.ratio),
                ends,
                found.drift.ratio,
                True,
                found.drift.confidence,
                "",
            )
        )
    severity = _severity(key, found)
    lost = _lost(points)
    if lost is not None:
        changes.append(lost)
        severity = math.inf
    return SeriesChanges(key, list(points), found, changes, severity)


def verdict_of(key: Key, ratio: float) -> Verdict:
    """Return the verdict on a change of a metric."""
    worse, better = WORDS.get(key.metric.unit, (Verdict.WORSE, Verdict.BETTER))
    return worse if (ratio > 1) == (key.metric.better == "lower") else better


def _severity(key: Key, found: ChangePoints) -> float:
    if found.drift is not None:
        lost = math.log(found.drift.ratio)
    elif len(found.levels) > 1:
        levels = [level for *_, level in found.levels]
        best = min(levels[:-1]) if key.metric.better == "lower" else max(levels[:-1])
        lost = math.log(levels[-1] / best)
    else:
        return 0.0
    return lost if key.metric.better == "lower" else -lost


def _lost(points: Sequence[Point]) -> Change | None:
    """The change after the cell's last time, if it has none any more."""
    if not points or points[-1].value is not None or not finite(points):
        return None
    last = max(i for i, p in enumerate(points) if p.value is not None)
    bad = points[last + 1]
    note = f"{bad.outcome}" + (
        f"; {change}" if (change := _environment_change(points[last], bad)) else ""
    )
    ends = _range(points, last, last + 1)
    return Change(Verdict.MISSING, ends, math.nan, False, math.nan, note)


def _range(points: Sequence[Point], good: int, bad: int) -> str:
    """Return a range of commits; one commit for points of two environments."""
    ends = (short(points[max(good, 0)].commit), short(points[bad].commit))
    return "..".join(dict.fromkeys(ends))


def short(commit: str) -> str:
    """Return a commit's first eight digits, with the mark of changed files if it has one."""
    return commit[:8] + ("+" if commit.endswith("+") else "")


def _changes_within(points: Sequence[Point]) -> str:
    changes = [_environment_change(a, b) for a, b in pairwise(points)]
    return ", ".join(dict.fromkeys(change for change in changes if change))


def find_all_changes(series: Mapping[Key, Sequence[Point]]) -> list[SeriesChanges]:
    """Find the changes of all series: losses first, then gains, then unchanged series by name."""
    found = [find_changes(key, points) for key, points in series.items()]
    return sorted(
        found,
        key=lambda s: (
            -max(s.severity, 0.0),
            not s.changes,
            s.severity,
            s.key.metric is not TIME,
            s.key.engine,
            s.key.size,
            s.key.where,
            s.key.metric.name,
        ),
    )


def count_environment_changes(found: Sequence[SeriesChanges]) -> dict[tuple[str, str], int]:
    """Count the series in which the environment changed, by the change and its range of commits."""
    counts: Counter[tuple[str, str]] = Counter()
    for s in found:
        counts.update((change, _range(s.points, i - 1, i)) for i, change in s.environment_changes)
    return dict(counts)


def change_rows(found: Sequence[SeriesChanges]) -> list[dict[str, Any]]:
    """Return one row per change for a spreadsheet or a program, and one per other environment."""
    marks = [
        {
            "verdict": "OTHER ENVIRONMENT",
            "metric": s.key.metric.name,
            "better": s.key.metric.better,
            "engine": s.key.engine,
            "where": s.key.where,
            "machine": s.key.machine,
            "commits": _range(s.points, i - 1, i),
            "ratio": None,
            "gradual": False,
            "confidence": None,
            "note": change,
        }
        for s in found
        for i, change in s.environment_changes
    ]
    return [
        {
            "verdict": str(change.verdict),
            "metric": s.key.metric.name,
            "better": s.key.metric.better,
            "engine": s.key.engine,
            "where": s.key.where,
            "machine": s.key.machine,
            "commits": change.commits,
            "ratio": None if math.isnan(change.ratio) else change.ratio,
            "gradual": change.gradual,
            "confidence": None if math.isnan(change.confidence) else change.confidence,
            "note": change.note,
        }
        for s in found
        for change in s.changes
    ] + marks


def summary(found: Sequence[SeriesChanges]) -> str:
    """Count series, commits, machines and changes, and the series too short for a change point."""
    commits = {point.commit for s in found for point in s.points}
    machines = {s.key.machine for s in found}
    brief = sum(len(finite(s.points)) < 2 * SHORTEST for s in found)
    changes = sum(len(s.changes) for s in found)
    text = (
        f"{len(found)} series over {len(commits)} commits on {len(machines)} "
        f"machine{'s' if len(machines) > 1 else ''}: "
        f"{changes} change{'s' if changes != 1 else ''}."
    )
    if brief:
        text += (
            f" {brief} series have fewer than {2 * SHORTEST} commits, too few for a change point."
        )
    return text
