"""Figures of a comparison, as SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from harness.compare.comparison import Change
from harness.compare.rows import accuracy_text
from harness.report.style import FAINT, INK, SETTINGS, Looks, svg
from harness.results.summary import CellSummary
from harness.results.verdict import Verdict
from harness.spec.metrics import ENERGY, TIME, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH, HEIGHT = 4.4, 3.1
_TITLE = 44
"""Characters per line of a title over bars, whose names need room at the left."""

CHANGES_SHOWN = 40
LABEL_WIDTH = 0.18
"""Width of a tick's label as a fraction of the axis of changes."""

# Quantity of a cell: value, low and high of its bar; None if the cell has no value.
Bar = tuple[float, float, float]
Quantity = Callable[[CellSummary], Bar | None]


def time_of(measured: CellSummary) -> Bar | None:
    """Return median and quartiles of a call, in seconds per event."""
    if not (measured.ok and measured.seconds and measured.low and measured.high):
        return None
    batch = measured.cell.batch
    return measured.seconds / batch, measured.low / batch, measured.high / batch


def call_of(measured: CellSummary) -> Bar | None:
    """Return median and quartiles of a call, in seconds."""
    if not (measured.ok and measured.seconds and measured.low and measured.high):
        return None
    return measured.seconds, measured.low, measured.high


def energy_of(measured: CellSummary) -> Bar | None:
    """Return the energy per event in joules, without a bar: a call is not measured by itself."""
    joules = measured.values.get(ENERGY.key) if measured.ok else None
    return (joules, joules, joules) if joules else None


def memory_of(measured: CellSummary) -> Bar | None:
    """Return the memory in bytes, without a bar: it hardly varies between rounds."""
    if not (measured.ok and measured.memory and measured.memory > 0):
        return None
    return measured.memory, measured.memory, measured.memory


def against_size(
    cells: Iterable[CellSummary], looks: Looks, quantity: Quantity, unit: str, label: str
) -> list[str]:
    """Draw one panel per phase, map and batch: a quantity against image size.

    Where all images have one size, the panel has a bar per engine instead of a line. Panels of a
    kind share their axis. Outcomes without a time are crosses at the upper edge, with their name.
    """
    panels: dict[str, list[CellSummary]] = defaultdict(list)
    cells = [m for m in cells if not m.cell.layer]
    for m in cells:
        if m.tried:
            panels[f"{_setting(m)}, batch {m.cell.batch}"].append(m)
    if not any(quantity(m) for m in cells):
        return []
    limits = _limits(cells, quantity)
    single = [found for found in panels.values() if len({m.cell.size for m in found}) == 1]
    most = max((bar[2] for found in single for m in found if (bar := quantity(m))), default=0.0)
    drawn = []
    for title, found in panels.items():
        if not any(quantity(m) for m in found):
            continue
        sizes = {m.cell.size for m in found}
        if len(sizes) == 1:
            title = f"{sizes.pop()} px, {title}"
            drawn.append(_bar_panel(title, found, looks, quantity, unit, label, most))
        else:
            drawn.append(_size_panel(title, found, looks, quantity, unit, label, limits))
    return drawn


def accuracy_against_time(cells: Iterable[CellSummary], looks: Looks) -> list[str]:
    """Draw one panel for each size, batch and map: accuracy of the labels against time per event.

    Each mark is an engine at one precision, which is named unless it is fp32. The bars are
    quartiles of the time, and the standard error of the accuracy over events.
    """
    import matplotlib.pyplot as plt

    panels: dict[str, list[CellSummary]] = defaultdict(list)
    for m in cells:
        if accuracy_text(m) and time_of(m):
            c = m.cell
            most = max(1, c.events.count or c.batch)
            events = "1 event" if most == 1 else f"{most} events"
            panels[f"{c.size} px, {c.map} map, batch {c.batch}, {events} on {c.device}"].append(m)
    panels = {title: found for title, found in panels.items() if len(found) > 1}
    drawn = []
    every = [m for found in panels.values() for m in found]
    ends = [
        100 * (m.labelling.nonzero + sign * (m.labelling.standard_error or 0.0))
        for m in every
        if m.labelling
        for sign in (-1, 1)
    ]
    for title, found in sorted(panels.items(), key=lambda item: item[1][0].question.order):
        with plt.rc_context(SETTINGS):
            figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
            for m in found:
                assert m.labelling is not None
                seconds, low, high = time_of(m) or (math.nan,) * 3
                axes.errorbar(
                    [seconds],
                    [100 * m.labelling.nonzero],
                    xerr=[[seconds - low], [high - seconds]],
                    yerr=100 * (m.labelling.standard_error or 0.0) or None,
                    fmt=looks.marker(m.engine),
                    color=looks.color(m.engine),
                    elinewidth=0.8,
                )
            axes.set_xscale("log")
            axes.set_xlim(*_limits(every, time_of))
            _log_axis(axes.xaxis, axes.get_xlim(), "s", wide=30)
            axes.set_xlabel("time per event")
            axes.set_ylabel("voxels labelled right [%]")
            margin = max(0.5, 0.15 * (max(ends) - min(ends)))
            axes.set_ylim(min(ends) - margin, max(ends) + margin)
            axes.set_title(title)
            marks = [
                (_mark_name(m), (time_of(m) or (math.nan,))[0], 100 * m.labelling.nonzero)
                for m in found
                if m.labelling
            ]
            _name_marks(axes, marks)
            drawn.append(svg(figure, f"accuracy against time per event: {title}"))
    return drawn


_PLACES = (
    ((6, 5), "left", "bottom"),
    ((6, -5), "left", "top"),
    ((-6, 5), "right", "bottom"),
    ((-6, -5), "right", "top"),
    ((0, 14), "center", "bottom"),
    ((0, -14), "center", "top"),
)
"""Places of a name beside its mark: offset in points, and alignment."""


def _mark_name(m: CellSummary) -> str:
    """Return the precision, unless it is fp32, and the number of events if there are fewer."""
    precision = "" if m.cell.precision == "fp32" else m.cell.precision
    count = len(m.labelling.labelled) if m.labelling else 0
    fewer = f"{count} of {m.cell.events.count} events" if count < m.cell.events.count else ""
    return ", ".join(filter(None, (precision, fewer)))


def _name_marks(axes: Axes, marks: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of marks where they overlap no other mark and no other name, if possible."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of Agg
    centres = axes.transData.transform([(x, y) for _, x, y in marks])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    frame = axes.get_window_extent(renderer)
    for (name, x, y), mark in zip(marks, list(taken), strict=True):
        for offset, horizontal, vertical in _PLACES if name else ():
            text = axes.annotate(
                name,
                (x, y),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=8.5,
                color=INK,
            )
            box = text.get_window_extent(renderer)
            hidden = any(box.overlaps(other) for other in taken if other is not mark)
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not hidden:
                taken.append(box)
                break
            text.remove()
        else:
            if name:
                axes.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8.5)


def against_sites(
    cells: Iterable[CellSummary], looks: Looks, quantity: Quantity, unit: str, label: str
) -> list[str]:
    """Draw one panel per phase and map: a quantity against the sites of the batch."""
    import matplotlib.pyplot as plt

    panels: dict[str, list[CellSummary]] = defaultdict(list)
    for m in cells:
        if m.sites and quantity(m) and not m.cell.layer:
            panels[_setting(m)].append(m)
    panels = {t: found for t, found in panels.items() if len({m.sites for m in found}) > 1}
    every = [m for found in panels.values() for m in found]
    drawn = []
    for title, found in panels.items():
        with plt.rc_context(SETTINGS):
            figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
            for engine in looks.engines:
                points = sorted(
                    (m.sites or 0, *(quantity(m) or (math.nan,) * 3))
                    for m in found
                    if m.engine == engine
                )
                _bars(axes, points, looks, engine, line=False)
            axes.set_xscale("log")
            axes.set_xlabel("active sites in the batch")
            counts = [m.sites or 0 for m in every]
            axes.set_xlim(min(counts) / 1.2, max(counts) * 1.2)
            _count_axis(axes)
            _finish(axes, title, label, unit, _limits(every, quantity))
            drawn.append(svg(figure, f"{label} against active sites: {title}"))
    return drawn


def against_level(
    cells: Iterable[CellSummary], looks: Looks, quantity: Quantity, unit: str, label: str
) -> list[str]:
    """Draw one panel per kind and phase of single convolutions: a quantity against level."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, list[CellSummary]] = defaultdict(list)
    for m in cells:
        if m.cell.layer and quantity(m):
            kind = m.cell.layer.rpartition("-")[0]
            setting = f"{m.cell.size} px, batch {m.cell.batch}"
            panels[f"{kind}, {m.cell.phase}, {setting}"].append(m)
    every = [m for found in panels.values() for m in found]
    drawn = []
    for title, found in panels.items():
        with plt.rc_context(SETTINGS):
            figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
            for engine in looks.engines:
                points = sorted(
                    (int(m.cell.layer.rpartition("-")[2]), *bar)
                    for m in found
                    if m.engine == engine and (bar := quantity(m))
                )
                _bars(axes, points, looks, engine, line=True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("level of the network")
            _finish(axes, title, label, unit, _limits(every, quantity))
            drawn.append(svg(figure, f"{label} against level: {title}"))
    return drawn


def change_figure(found: Sequence[Change]) -> str:
    """Draw the change of each cell's time with its interval, the most serious first."""
    import matplotlib.pyplot as plt

    shown = [c for c in found if c.metric.key == TIME.key and math.isfinite(c.judgement.low)]
    shown = shown[:CHANGES_SHOWN]
    if not shown:
        return ""
    colors = {Verdict.SLOWER: "#D55E00", Verdict.FASTER: "#009E73", Verdict.UNCLEAR: "#E69F00"}
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(4.6, 0.8 + 0.42 * len(shown)))
        limit = 1 + TIME.tolerance
        axes.axvspan(1 / limit, limit, color=FAINT, alpha=0.5, lw=0)
        for row, c in enumerate(shown):
            axes.plot([1, 1], [row - 0.2, row + 0.3], color=INK, lw=0.8)  # beside the labels
            j = c.judgement
            color = colors.get(j.verdict, "#7A7A7A")
            axes.plot([j.low, j.high], [row, row], color=color, lw=2.4, solid_capstyle="round")
            axes.plot([j.ratio], [row], "o", color=color, ms=6)
            axes.text(
                0,
                row - 0.24,
                f"{j.verdict}  {c.measured.engine}, {_short(c.measured)}",
                fontsize=8.5,
                va="bottom",
                transform=axes.get_yaxis_transform(),
            )
        axes.set_yticks([])
        axes.set_ylim(len(shown) - 0.5, -0.9)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{100 * (value - 1):+.0f} %" if value != 1 else "same"
        )
        axes.xaxis.set_minor_formatter(lambda *_: "")
        low = min(0.9, *(c.judgement.low for c in shown))
        high = max(1.1, *(c.judgement.high for c in shown))
        axes.set_xlim(max(low, 0.2) * 0.98, min(high, 5.0) * 1.02)
        axes.set_xticks(_change_ticks(*axes.get_xlim()))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"change of time; grey: within {TIME.tolerance:.0%}".replace("%", " %"))
        return svg(figure, "Change of time of each cell with its 95 per cent interval")


def _change_ticks(low: float, high: float) -> list[float]:
    """Return round ratios within the limits whose labels do not overlap; 1 is the first choice."""
    near = [1.0, 1.1, 0.9, 2.0, 0.5]
    even = [0.25, 0.7, 0.8, 0.94, 0.97, 1.03, 1.06, 1.2, 1.4, 1.7, 3.0, 5.0]
    chosen: list[float] = []
    for step in (*near, *even):
        apart = (abs(math.log(step / other)) for other in chosen)
        if low <= step <= high and all(gap > LABEL_WIDTH * math.log(high / low) for gap in apart):
            chosen.append(step)
    return sorted(chosen)


def _setting(m: CellSummary) -> str:
    """Return the parameters that are constant in a panel, except the batch."""
    c = m.cell
    name = {"step": "optimisation step"}.get(c.phase, c.phase)
    plane = ", 2D" if c.dim == 2 else ""
    return f"{name}, {c.map} map{plane}, {c.precision} on {c.device}"


def _short(m: CellSummary) -> str:
    c = m.cell
    layer = f"{c.layer} " if c.layer else ""
    return f"{c.size} px ×{c.batch} {layer}{c.phase} {c.map}"


def _limits(cells: Iterable[CellSummary], quantity: Quantity) -> tuple[float, float]:
    """Return the common range of a quantity for all panels, with space for crosses above."""
    bars = [bar for m in cells if (bar := quantity(m))]
    return min(b[1] for b in bars) / 1.5, max(b[2] for b in bars) * 3 if bars else 1.0


def _size_panel(
    title: str,
    found: Sequence[CellSummary],
    looks: Looks,
    quantity: Quantity,
    unit: str,
    label: str,
    limits: tuple[float, float],
) -> str:
    import matplotlib.pyplot as plt

    sizes = sorted({m.cell.size for m in found})
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        failures: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for engine in looks.engines:
            own = [m for m in found if m.engine == engine]
            points = sorted((sizes.index(m.cell.size), *bar) for m in own if (bar := quantity(m)))
            _bars(axes, points, looks, engine, line=True)
            for m in own:
                if not m.ok:
                    failures[sizes.index(m.cell.size)].append((engine, m.side.outcome))
        for place, lost in failures.items():
            for k, (engine, outcome) in enumerate(lost):
                _cross(axes, place, k, looks.color(engine), outcome)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_xlabel("voxels per side")
        _finish(axes, title, label, unit, limits)
        return svg(figure, f"{label} against image size: {title}")


def _bar_panel(
    title: str,
    found: Sequence[CellSummary],
    looks: Looks,
    quantity: Quantity,
    unit: str,
    label: str,
    most: float,
) -> str:
    """Draw a bar per engine with its number, the smallest first, and the failures below.

    ``most`` is the largest value of the axis.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    bars = sorted(((bar, m) for m in found if (bar := quantity(m))), key=lambda pair: pair[0])
    lost = [m for m in found if not quantity(m)]
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(WIDTH, max(1.4, 0.9 + 0.3 * len(found))))
        for row, ((value, low, high), m) in enumerate(bars):
            error = [[value - low], [high - value]]
            axes.barh(row, value, 0.6, xerr=error, color=looks.color(m.engine), ecolor=INK)
            axes.text(high + 0.02 * most, row, format_value(value, unit), va="center", color=INK)
        for row, m in enumerate(lost, len(bars)):
            text = m.side.outcome.replace("out-of-memory", "out of memory")
            axes.text(0.02 * most, row, text if not m.ok else "not measured", va="center")
        axes.set_yticks(range(len(found)), [m.engine for _, m in bars] + [m.engine for m in lost])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 1.3 * most)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda number, _: format_value(number, unit))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        axes.set_title(fill(title, _TITLE))
        return svg(figure, f"{label} by engine: {title}")


def _bars(
    axes: Axes, points: Sequence[tuple[float, ...]], looks: Looks, engine: str, line: bool
) -> None:
    """Draw the points of one engine, with quartiles as bars."""
    if not points:
        return
    x, y, low, high = zip(*points, strict=True)
    down = [a - b for a, b in zip(y, low, strict=True)]
    up = [b - a for a, b in zip(y, high, strict=True)]
    axes.errorbar(
        x,
        y,
        yerr=[down, up],
        fmt=looks.marker(engine) + ("-" if line else ""),
        color=looks.color(engine),
        capsize=3,
        alpha=1.0 if line else 0.85,
    )


def _cross(axes: Axes, x: float, row: int, color: str, outcome: str) -> None:
    """Mark an outcome without a time at the upper edge of the panel."""
    y = 0.96 - 0.1 * row
    where: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.plot([x], [y], "x", color=color, ms=8, mew=2.2, **where)
    axes.annotate(
        outcome.replace("out-of-memory", "out of memory"),
        (x, y),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8.5,
        color=INK,
    )


def _finish(axes: Axes, title: str, label: str, unit: str, limits: tuple[float, float]) -> None:
    """Set the title and the logarithmic axis of a panel, with readable units."""
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    _log_axis(axes.yaxis, limits, unit)
    axes.set_ylabel(label)
    axes.set_title(title)


def _log_axis(axis: Axis, limits: tuple[float, float], unit: str, wide: float = 1000) -> None:
    """Label a logarithmic axis; powers of ten alone would be too few ticks.

    From a ratio ``wide`` of its ends on, the axis has room for fewer.
    """
    from matplotlib.ticker import LogLocator

    span = limits[1] / limits[0]
    steps = (1.0, 2.0, 5.0) if span < wide else (1.0, 3.0) if span < 1000 else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=steps))
    axis.set_major_formatter(lambda value, _: format_value(value, unit))
    axis.set_minor_formatter(lambda *_: "")


def _count_axis(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
    )
    axes.xaxis.set_minor_formatter(lambda *_: "")
