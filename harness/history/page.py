"""The page of a history: one small figure per series, losses first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.history.findings import SeriesChanges, short, summary
from harness.history.series import finite
from harness.report.html import SHAPES, environment, save
from harness.report.style import FAINT, INK, SETTINGS, Looks, svg
from harness.results.verdict import Verdict
from harness.spec.metrics import format_value

SERIES_SHOWN = 400
"""Most figures of the page, for the browser's sake; unchanged series are left out first."""

GOOD = (Verdict.FASTER, Verdict.LIGHTER, Verdict.BETTER)


def write_history_page(folder: Path, found: Sequence[SeriesChanges]) -> Path:
    """Write ``history.html`` into a folder, and return its path.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    return save(render_history(found), folder / "history.html", "--report")


def render_history(found: Sequence[SeriesChanges]) -> str:
    """Return the page as HTML."""
    looks = Looks(s.key.engine for s in found)
    # Series of one commit, which the page hides at first, come after those with a history.
    shown = sorted(found, key=lambda s: not s.has_history)[:SERIES_SHOWN]
    page: str = (
        environment("harness.history")
        .get_template("history.html.j2")
        .render(
            looks=looks,
            shapes=SHAPES,
            summary=summary(found),
            claim=claim(found),
            cards=[card(s, looks) for s in shown],
            singles=sum(not s.has_history for s in shown),
            left_out=len(found) - len(shown),
            choices={
                "engine": looks.engines,
                "size": sorted({s.key.size for s in found}),
                "metric": sorted({s.key.metric.name for s in found}),
            },
            machines=sorted({s.key.machine for s in found}),
        )
    )
    return page


def claim(found: Sequence[SeriesChanges]) -> str:
    """Return the headline: how many series are worse than at their best."""
    worse = sum(s.severity > 0 for s in found)
    if worse:
        verb, subject = ("is", "it was") if worse == 1 else ("are", "they were")
        return f"{worse} of {len(found)} series {verb} worse than {subject}"
    gained = sum(s.severity < 0 for s in found)
    if gained:
        return f"Nothing is worse than it was; {gained} of {len(found)} series gained"
    return "Nothing changed"


def card(series: SeriesChanges, looks: Looks) -> dict[str, Any]:
    """Return the content of a series' card for the template."""
    valued = finite(series.points)
    return {
        "key": series.key,
        "changes": [(change, tone(change.verdict)) for change in series.changes],
        "environment_changes": [
            f"{change} at {short(series.points[i].commit)}"
            for i, change in series.environment_changes
        ],
        "disturbed": ", ".join(short(series.points[i].commit) for i in series.disturbed),
        "single": not series.has_history,
        "latest": format_value(valued[-1].value if valued else None, series.key.metric.unit),
        "figure": series_figure(series, looks),
        "severity": f"{min(series.severity, 99.0):.4f}",
    }


def tone(verdict: Verdict) -> str:
    """Return the CSS class of a verdict's colour."""
    return "good" if verdict in GOOD else "bad"


def value_range(series: SeriesChanges) -> tuple[float, float]:
    """Return the limits of the vertical axis: all values and quartiles, with room around them."""
    shown = [
        number
        for p in finite(series.points)
        for number in (p.value, p.low, p.high)
        if number is not None
    ]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    room = max(high - low, 0.1 * abs(high)) or 1.0
    return (max(low - 0.35 * room, 0.0) if low >= 0 else low - 0.35 * room), high + 0.45 * room


def series_figure(series: SeriesChanges, looks: Looks) -> str:
    """Draw a series: values with quartiles, levels, and the ranges of the change points."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    unit = series.key.metric.unit
    places = [i for i, p in enumerate(series.points) if p.value is not None]
    values = [p.value or 0.0 for p in finite(series.points)]
    color = looks.color(series.key.engine)
    found = series.change_points
    with plt.rc_context(SETTINGS | {"font.size": 9}):
        drawing, axes = plt.subplots(figsize=(4.4, 1.9))
        for i, p in enumerate(series.points):
            if p.low is not None and p.high is not None:
                axes.plot([i, i], [p.low, p.high], color=color, alpha=0.45, lw=1.2)
        disturbed = series.disturbed
        for fill, wanted in ((color, False), ("none", True)):
            own = [i for i in places if (i in disturbed) == wanted]
            heights = [series.points[i].value or 0.0 for i in own]
            axes.plot(own, heights, "o", color=color, mfc=fill, ms=3.2, alpha=0.9)
        for change in found.changes:
            left, right = places[change.first - 1], places[change.last]
            axes.axvspan(left, right, color=FAINT, lw=0)
        for begin, end, level in found.levels:
            shown = [places[begin], places[end - 1]]
            if unit and len(found.levels) > 1:
                axes.plot(shown, [level, level], color=INK, lw=1.4)
        if found.drift is not None:
            axes.plot(
                [places[0], places[-1]],
                [values[0], values[0] * found.drift.ratio],
                color=INK,
                lw=1.4,
            )
        for i, _ in series.environment_changes:
            axes.axvline(i, color=INK, lw=0.9, ls=":")
        lost = [i for i, p in enumerate(series.points) if p.value is None]
        axes.plot(
            lost,
            [0.94] * len(lost),
            "x",
            color=color,
            ms=6,
            mew=1.8,
            transform=axes.get_xaxis_transform(),
        )
        axes.set_ylim(*value_range(series))
        axes.yaxis.set_major_formatter(lambda value, _: format_value(value, unit))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        ends = sorted({0, len(series.points) - 1})
        axes.set_xticks(ends, [short(series.points[i].commit) for i in ends])
        axes.set_xlim(-0.5, max(len(series.points) - 0.5, 0.5))
        key = series.key
        return svg(drawing, f"{key.metric.name} of {key.engine}, {key.where}")
