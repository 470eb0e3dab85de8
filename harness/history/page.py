"""Writes the page of a history: one small figure for each series, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.history.findings import Told, short, summary
from harness.history.series import finite
from harness.report.html import SHAPES, environment, save
from harness.report.style import FAINT, INK, SETTINGS, Looks, svg
from harness.results.verdict import Verdict
from harness.spec.metrics import format_value

SERIES_SHOWN = 400
"""Beyond these a browser takes long and a reader longer; the quiet ones are left out first."""

GOOD = (Verdict.FASTER, Verdict.LIGHTER, Verdict.BETTER)


def write_page(folder: Path, told: Sequence[Told]) -> Path:
    """Write ``history.html`` into a folder, and return its path.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    return save(render(told), folder / "history.html", "--report")


def render(told: Sequence[Told]) -> str:
    """Return the page as HTML."""
    looks = Looks(t.key.engine for t in told)
    shown = told[:SERIES_SHOWN]
    return (
        environment("harness.history")
        .get_template("history.html.j2")
        .render(
            looks=looks,
            shapes=SHAPES,
            summary=summary(told),
            claim=claim(told),
            cards=[card(t, looks) for t in shown],
            left_out=len(told) - len(shown),
            choices={
                "engine": looks.engines,
                "size": sorted({t.key.size for t in told}),
                "metric": sorted({t.key.metric.name for t in told}),
            },
            machines=sorted({t.key.machine for t in told}),
        )
    )


def claim(told: Sequence[Told]) -> str:
    """Say in one sentence whether anything is worse than it was."""
    worse = sum(t.severity > 0 for t in told)
    if worse:
        return f"{worse} of {len(told)} series are worse than they were"
    gained = sum(t.severity < 0 for t in told)
    if gained:
        return f"Nothing is worse than it was; {gained} of {len(told)} series gained"
    return "Nothing changed"


def card(told: Told, looks: Looks) -> dict[str, Any]:
    """What the template shows of a series."""
    valued = finite(told.points)
    return {
        "key": told.key,
        "events": [(event, tone(event.verdict)) for event in told.events],
        "upgrades": [f"{change} at {short(told.points[i].commit)}" for i, change in told.upgrades],
        "latest": format_value(valued[-1].value if valued else None, told.key.metric.unit),
        "figure": figure(told, looks),
        "severity": f"{min(told.severity, 99.0):.4f}",
    }


def tone(verdict: Verdict) -> str:
    """The class of a verdict's colour."""
    return "good" if verdict in GOOD else "bad"


def figure(told: Told, looks: Looks) -> str:
    """Draw a series: points with quartiles, its levels, and where they change."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    unit = told.key.metric.unit
    places = [i for i, p in enumerate(told.points) if p.value is not None]
    values = [p.value or 0.0 for p in finite(told.points)]
    color = looks.color(told.key.engine)
    with plt.rc_context(SETTINGS | {"font.size": 9}):
        drawing, axes = plt.subplots(figsize=(4.4, 1.9))
        for i, p in enumerate(told.points):
            if p.low is not None and p.high is not None:
                axes.plot([i, i], [p.low, p.high], color=color, alpha=0.35, lw=1)
        axes.plot(places, values, ".", color=color, ms=6.5, alpha=0.8)
        for event in told.course.steps:
            left, right = places[event.first - 1], places[event.last]
            axes.axvspan(left, right, color=FAINT, lw=0)
        for begin, end, level in told.course.levels:
            shown = [places[begin], places[end - 1]]
            if unit and len(told.course.levels) > 1:
                axes.plot(shown, [level, level], color=INK, lw=1.4)
        if told.course.drift is not None:
            axes.plot(
                [places[0], places[-1]],
                [values[0], values[0] * told.course.drift.ratio],
                color=INK,
                lw=1.4,
            )
        for i, _ in told.upgrades:
            axes.axvline(i, color=INK, lw=0.9, ls=":")
        lost = [i for i, p in enumerate(told.points) if p.value is None]
        axes.plot(
            lost,
            [0.94] * len(lost),
            "x",
            color=color,
            ms=6,
            mew=1.8,
            transform=axes.get_xaxis_transform(),
        )
        low, high = min(values, default=0.0), max(values, default=1.0)
        room = max(high - low, 0.1 * abs(high)) or 1.0
        axes.set_ylim(max(low - 0.35 * room, 0.0), high + 0.45 * room)
        axes.yaxis.set_major_formatter(lambda value, _: format_value(value, unit))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        ends = sorted({0, len(told.points) - 1})
        axes.set_xticks(ends, [short(told.points[i].commit) for i in ends])
        axes.set_xlim(-0.5, max(len(told.points) - 0.5, 0.5))
        return svg(drawing, f"{told.key.metric.name} of {told.key.engine}, {told.key.where}")
