"""History: what got slower or larger, when, and by which commits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import BadInput
from harness.history.change_points import SHORTEST, Course, follow
from harness.history.series import Commits, Key, Point, finite, level_values, load
from harness.report.rows import Format, write_rows
from harness.results.store import RESULTS
from harness.results.verdict import WORDS, Verdict, percent
from harness.spec.metrics import TIME, format_value
from harness.terminal import table_console

LINES_ON_A_SCREEN = 40


@dataclass(frozen=True)
class Event:
    """Something that happened to a series.

    Attributes
    ----------
    verdict
        SLOWER, HEAVIER, … for a step or a drift; MISSING for a cell that lost its time.
    commits
        Range in which the cause lies, the first excluded as git writes it: ``good..bad``.
    ratio
        Level after over level before; NaN for MISSING.
    gradual
        Whether it is a drift over the whole range.
    confidence
        One minus the chance that noise did it; NaN for MISSING.
    note
        What else changed in that range: versions of the engine or of torch.
    """

    verdict: Verdict
    commits: str
    ratio: float
    gradual: bool
    confidence: float
    note: str

    @property
    def words(self) -> str:
        """The event in a sentence's length."""
        if self.verdict is Verdict.MISSING:
            return f"MISSING since {self.commits}: {self.note}"
        how = "drifted" if self.gradual else "stepped"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.verdict}: {how} {percent(self.ratio)} in {self.commits}, "
            f"confidence {sureness(self.confidence)}{note}"
        )


@dataclass(frozen=True)
class Told:
    """A series with what happened to it.

    Attributes
    ----------
    severity
        Logarithm of the latest level over the best level before: how much is lost now. Infinite
        where the cell has no time any more, negative where it gained.
    """

    key: Key
    points: list[Point]
    course: Course
    events: list[Event]
    severity: float

    @property
    def upgrades(self) -> list[tuple[int, str]]:
        """Where the engine's or torch's version changed: index of the point, and what."""
        return [
            (i, change)
            for i in range(1, len(self.points))
            if (change := version_change(self.points[i - 1], self.points[i]))
        ]


def sureness(confidence: float) -> str:
    """A confidence as people write it, never 100 %."""
    return "over 99.9 %" if confidence > 0.999 else f"{100 * confidence:.1f} %"


def version_change(before: Point, after: Point) -> str:
    """Name the versions that differ: ``spconv 2.3.6 to 2.3.8``; empty if none does."""
    return ", ".join(
        f"{name} {before.versions[name]} to {version}"
        for name, version in after.versions.items()
        if before.versions.get(name, version) != version
    )


def tell(key: Key, points: Sequence[Point]) -> Told:
    """Find out what happened to a series.

    Parameters
    ----------
    key
        What it is about.
    points
        In the order of commits.
    """
    valued = finite(points)
    smallest = key.metric.tolerance if key.metric.unit else TIME.tolerance
    course = follow(level_values(points, key.metric), smallest)
    events = [
        Event(
            verdict_of(key, step.ratio),
            _range(valued, step.first - 1, step.last),
            step.ratio,
            False,
            step.confidence,
            _upgrades(valued[max(step.first - 1, 0) : step.last + 1]),
        )
        for step in course.steps
    ]
    if course.drift is not None:
        ends = _range(valued, 0, len(valued) - 1)
        events.append(
            Event(
                verdict_of(key, course.drift.ratio),
                ends,
                course.drift.ratio,
                True,
                course.drift.confidence,
                "",
            )
        )
    severity = _severity(key, course)
    lost = _lost(points)
    if lost is not None:
        events.append(lost)
        severity = math.inf
    return Told(key, list(points), course, events, severity)


def verdict_of(key: Key, ratio: float) -> Verdict:
    """The word for a change of a metric."""
    worse, better = WORDS.get(key.metric.unit, (Verdict.WORSE, Verdict.BETTER))
    return worse if (ratio > 1) == (key.metric.better == "lower") else better


def _severity(key: Key, course: Course) -> float:
    if course.drift is not None:
        lost = math.log(course.drift.ratio)
    elif len(course.levels) > 1:
        levels = [level for *_, level in course.levels]
        best = min(levels[:-1]) if key.metric.better == "lower" else max(levels[:-1])
        lost = math.log(levels[-1] / best)
    else:
        return 0.0
    return lost if key.metric.better == "lower" else -lost


def _lost(points: Sequence[Point]) -> Event | None:
    """The cell's last time, if it has none any more."""
    if not points or points[-1].value is not None or not finite(points):
        return None
    last = max(i for i, p in enumerate(points) if p.value is not None)
    bad = points[last + 1]
    note = f"{bad.outcome}" + (
        f"; {change}" if (change := version_change(points[last], bad)) else ""
    )
    ends = _range(points, last, last + 1)
    return Event(Verdict.MISSING, ends, math.nan, False, math.nan, note)


def _range(points: Sequence[Point], good: int, bad: int) -> str:
    return f"{short(points[max(good, 0)].commit)}..{short(points[bad].commit)}"


def short(commit: str) -> str:
    """A commit's first eight digits, and the mark of changed files if it has one."""
    return commit[:8] + ("+" if commit.endswith("+") else "")


def _upgrades(points: Sequence[Point]) -> str:
    changes = [version_change(a, b) for a, b in pairwise(points)]
    return ", ".join(dict.fromkeys(change for change in changes if change))


def tell_all(series: Mapping[Key, Sequence[Point]]) -> list[Told]:
    """Tell every series, the worst first, then the gains, then the quiet ones by name."""
    told = [tell(key, points) for key, points in series.items()]
    return sorted(
        told,
        key=lambda t: (
            -max(t.severity, 0.0),
            not t.events,
            t.severity,
            t.key.metric is not TIME,
            t.key.engine,
            t.key.size,
            t.key.where,
            t.key.metric.name,
        ),
    )


def upgrades(told: Sequence[Told]) -> dict[tuple[str, str], int]:
    """New versions of engines and of torch: what and in which commits, with how many series."""
    found: Counter[tuple[str, str]] = Counter()
    for t in told:
        found.update((change, _range(t.points, i - 1, i)) for i, change in t.upgrades)
    return dict(found)


def event_rows(told: Sequence[Told]) -> list[dict[str, Any]]:
    """Flatten the events for a spreadsheet or a program; an upgrade is an event of its series."""
    marks = [
        {
            "verdict": "UPGRADED",
            "metric": t.key.metric.name,
            "better": t.key.metric.better,
            "engine": t.key.engine,
            "where": t.key.where,
            "machine": t.key.machine,
            "commits": _range(t.points, i - 1, i),
            "ratio": None,
            "gradual": False,
            "confidence": None,
            "note": change,
        }
        for t in told
        for i, change in t.upgrades
    ]
    return [
        {
            "verdict": str(event.verdict),
            "metric": t.key.metric.name,
            "better": t.key.metric.better,
            "engine": t.key.engine,
            "where": t.key.where,
            "machine": t.key.machine,
            "commits": event.commits,
            "ratio": None if math.isnan(event.ratio) else event.ratio,
            "gradual": event.gradual,
            "confidence": None if math.isnan(event.confidence) else event.confidence,
            "note": event.note,
        }
        for t in told
        for event in t.events
    ] + marks


def history(
    report: Annotated[
        Path | None, typer.Option(help="Write the page history.html into this directory.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Show every stored run over commits, with the steps found."""
    series = load(RESULTS, Commits.of(Path.cwd()))
    if not series:
        raise BadInput(f"there are no runs under {RESULTS}; measure one with: harness run")
    told = tell_all(series)
    if format is Format.table:
        _print(told)
    else:
        typer.echo(write_rows(event_rows(told), format))
    if report is not None:
        from harness.history.page import write_page

        path = write_page(report, told)
        typer.echo(f"page: {path}", err=format is not Format.table)


def _print(told: Sequence[Told]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = table_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("engine", "where", "metric", "now", "what happened"):
        table.add_column(name, overflow="fold")
    eventful = [(t, event) for t in told for event in t.events]
    for t, event in eventful[:LINES_ON_A_SCREEN]:
        latest = t.points[-1].value
        table.add_row(
            t.key.engine,
            t.key.where,
            t.key.metric.name,
            format_value(latest, t.key.metric.unit),
            escape(event.words),
        )
    if eventful:
        console.print(table)
    if len(eventful) > LINES_ON_A_SCREEN:
        console.print(f"{len(eventful) - LINES_ON_A_SCREEN} more: see --format csv.")
    for (change, commits), count in upgrades(told).items():
        console.print(f"new version: {change} in {commits} ({count} series)", markup=False)
    console.print(summary(told))


def summary(told: Sequence[Told]) -> str:
    """How much was looked at, and how much of it was too short to tell."""
    commits = {point.commit for t in told for point in t.points}
    machines = {t.key.machine for t in told}
    brief = sum(len(finite(t.points)) < 2 * SHORTEST for t in told)
    steps = sum(len(t.events) for t in told)
    text = (
        f"{len(told)} series over {len(commits)} commits on {len(machines)} "
        f"machine{'s' if len(machines) > 1 else ''}: {steps} event{'s' if steps != 1 else ''}."
    )
    if brief:
        text += f" {brief} series have fewer than {2 * SHORTEST} commits, too few to find a step."
    return text
