"""Plots of the page: learning curves, accuracies, costs and their growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.report.style import INK, PALETTE, Looks
from harness.spec.metrics import format_value
from harness.study.results import Curve
from harness.study.sweeps import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = {"forward": "inference", "step": "training"}
"""Phases in words."""

_LINES = {"forward": "-", "step": "--"}

_WIDTHS = (5.0, 2.0, 1.4)
_SIZES = (9.0, 5.0, 3.0)
"""Widths of lines and sizes of points, decreasing: curves that coincide remain visible."""


def curve_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """Return all steps of some trainings, with the moving means of the figures."""
    parts = [
        curve.steps.assign(
            training=curve.training.name,
            smooth_loss=curve.smooth["loss"],
            smooth_accuracy=curve.smooth["accuracy"],
        )
        for curve in curves
    ]
    return pd.concat(parts, ignore_index=True)


def draw_curves(axes: Axes, curves: Sequence[Curve], along: str, quantity: str) -> None:
    """Draw moving means of trainings as lines, and evaluations on held-out events as points."""
    points = False
    for i, curve in enumerate(curves):
        color = PALETTE[i % len(PALETTE)]
        rank = min(i, len(_WIDTHS) - 1)
        axes.plot(
            curve.steps[along],
            curve.smooth[quantity],
            color=color,
            lw=_WIDTHS[rank] if len(curves) > 1 else _WIDTHS[1],
            label=curve.training.name,
        )
        if quantity == "accuracy" and len(curve.held_out) and along in curve.held_out:
            points = True
            axes.plot(
                curve.held_out[along],
                curve.held_out["accuracy"],
                "o",
                color=color,
                ms=_SIZES[rank] if len(curves) > 1 else _SIZES[1],
                zorder=3 + 0.1 * i,
            )
    if points:
        axes.plot([], [], "o", color=INK, mfc="none", ms=5, label="held-out events")
    words = {"step": "iterations", "seconds": "training time [s]", "joules": "energy [J]"}
    axes.set_xlabel(words[along])
    axes.set_ylabel("nonzero accuracy" if quantity == "accuracy" else "loss of a batch")
    if quantity == "accuracy":
        axes.set_ylim(top=1.0)
    _legend_above(axes, 2)


def draw_sweep(axes: Sequence[Axes], sweep: Sweep, looks: Looks) -> None:
    """Draw time (left) and memory (right) with the fitted power laws."""
    for panel, (quantity, unit) in zip(axes, (("seconds", "s"), ("bytes", "bytes")), strict=True):
        _draw_quantity(panel, sweep, looks, quantity)
        panel.set_xscale("log")
        panel.set_yscale("log")
        _plain_ticks(panel, sweep.table["x"])
        panel.set_xlabel(sweep.along)
        panel.set_title("time per call" if quantity == "seconds" else "peak memory")
        _units(panel, unit)
        panel.legend(frameon=False, fontsize=8)


def draw_times(axes: Axes, sweep: Sweep, looks: Looks) -> None:
    """Draw the times of curves that may cross, without fits."""
    for engine in sweep.engines:
        for phase in PHASES:
            own = sweep.table[
                (sweep.table["engine"] == engine) & (sweep.table["phase"] == phase)
            ].dropna(subset=["seconds"])
            if own.empty:
                continue
            axes.plot(
                own["x"],
                own["seconds"],
                _LINES[phase],
                marker=looks.marker(engine),
                color=looks.color(engine),
                label=f"{engine}, {PHASES[phase]}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(sweep.along)
    axes.set_ylabel("time per call")
    _units(axes, "s")
    axes.legend(frameon=False, fontsize=8)


def _draw_quantity(axes: Axes, sweep: Sweep, looks: Looks, quantity: str) -> None:
    for engine in sweep.engines:
        for phase in PHASES:
            own = sweep.table[
                (sweep.table["engine"] == engine) & (sweep.table["phase"] == phase)
            ].dropna(subset=[quantity])
            if own.empty:
                continue
            law = sweep.fit(engine, phase, quantity)
            label = f"{engine}, {PHASES[phase]}" + (f": {law}" if law else "")
            color = looks.color(engine)
            axes.plot(own["x"], own[quantity], looks.marker(engine), color=color, ms=5)
            x = np.array(own["x"], float)
            y = [law(value) for value in x] if law else own[quantity]
            axes.plot(x, y, _LINES[phase], color=color, lw=1.2, label=label)


def _plain_ticks(axes: Axes, values: pd.Series) -> None:
    """Set ticks at the measured values; an axis with powers of ten would have very few."""
    places = sorted(set(values))
    axes.set_xticks(places, [f"{v / 1000:.3g}k" if v >= 1000 else f"{v:g}" for v in places])
    axes.xaxis.set_minor_formatter(lambda *_: "")


def _units(axes: Axes, unit: str) -> None:
    """Set ticks with a unit on a logarithmic axis; equidistant ones if the range is small."""
    from matplotlib.ticker import AutoLocator, LogLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(
        AutoLocator() if high < 5 * low else LogLocator(10, subs=(1.0, 2.0, 5.0))
    )
    axes.yaxis.set_major_formatter(lambda value, _: format_value(value, unit))
    axes.yaxis.set_minor_formatter(lambda *_: "")


def draw_confusion(axes: Axes, shares: pd.DataFrame) -> None:
    """Draw a confusion matrix with its values."""
    values = shares.to_numpy()
    axes.imshow(np.nan_to_num(values), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            text = "–" if math.isnan(value) else f"{value:.3f}"
            color = "white" if value > 0.55 else "#1b1f24"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(shares.shape[1]), list(shares.columns))
    axes.set_yticks(range(shares.shape[0]), list(shares.index))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)


def draw_classes(axes: Axes, table: pd.DataFrame) -> None:
    """Draw accuracy, purity and intersection over union of each class as bars."""
    names = table["class"].tolist()
    place = np.arange(len(names))
    for i, measure in enumerate(("accuracy", "purity", "IoU")):
        bars = axes.bar(
            place + 0.27 * (i - 1), table[measure].fillna(0), 0.25, label=measure, color=PALETTE[i]
        )
        axes.bar_label(bars, fmt="{:.2f}", fontsize=7.5, color=INK)
    axes.set_xticks(place, names)
    axes.set_ylim(0, 1.12)
    axes.grid(axis="x", visible=False)
    _legend_above(axes, 3)


def _legend_above(axes: Axes, columns: int) -> None:
    """Place the legend above the axes, where it hides no data."""
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=columns,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )


def draw_accuracies(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the mean nonzero accuracy of several tests with its standard deviation over events."""
    place = np.arange(len(table))
    axes.errorbar(
        place,
        table["nonzero accuracy"],
        yerr=table["spread over events"],
        fmt="o",
        color=PALETTE[0],
        ecolor=PALETTE[5],
        capsize=4,
        label="this machine",
    )
    published = table.dropna(subset=["published"])
    axes.plot(
        published.index, published["published"], "_", ms=22, color=PALETTE[1], label="2018 study"
    )
    axes.set_xticks(place, table["label"], fontsize=8)
    axes.set_ylabel("nonzero accuracy")
    axes.set_ylim(top=1.05)
    _legend_above(axes, 2)


def draw_dilation(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the number of active sites after ordinary and submanifold convolutions."""
    for i, name in enumerate(c for c in table.columns if c != "convolutions"):
        axes.plot(table["convolutions"], table[name], "o-", color=PALETTE[i], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("number of 3×3×3 convolutions")
    axes.set_ylabel("active sites")
    axes.set_xticks(table["convolutions"])
    axes.legend(frameon=False, fontsize=8)
