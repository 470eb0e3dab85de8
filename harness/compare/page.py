"""Writes the page of a comparison: one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compare.comparison import (
    Change,
    Finding,
    Standing,
    by_environment,
    common_drift,
    disturbance,
    failures,
    finding,
    headline,
    machine_labels,
    not_judged,
)
from harness.compare.event_display import display_event
from harness.compare.figures import (
    accuracy_against_time,
    against_level,
    against_sites,
    against_size,
    call_of,
    change_figure,
    energy_of,
    memory_of,
    time_of,
)
from harness.compare.rows import accuracy_text, change_rows, spread, standing_rows
from harness.events.open import SAMPLE
from harness.report.html import SHAPES, environment, save
from harness.report.provenance import facts, recipe
from harness.report.rows import Format, write_rows
from harness.report.style import Looks
from harness.results.summary import CellSummary
from harness.results.verdict import Verdict
from harness.spec.metrics import ENERGY

if TYPE_CHECKING:
    import pandas as pd

ROWS_SHOWN = 400
"""Beyond these a table is not read but searched, which its CSV file is for."""


def write_page(
    folder: Path,
    frame: pd.DataFrame,
    cells: Sequence[CellSummary],
    ranked: Sequence[Standing],
    found: Sequence[Change],
    frame_before: pd.DataFrame | None = None,
    events: str = SAMPLE,
) -> Path:
    """Write ``index.html`` into a folder.

    Parameters
    ----------
    folder
        Made if it does not exist.
    frame
        Records of the run (of the run after, where there are two).
    cells, ranked
        The same records pooled, and the engines' standings.
    found
        Changes since the run before; empty for a single run.
    frame_before
        Records of the run before, or None.
    events
        ``sample``, or the file of the events, to show one.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        If the folder cannot be written, or the file of events is not that of the run.
    """
    text = render(frame, cells, ranked, found, frame_before, events)
    return save(text, folder / "index.html", "--report")


def render(
    frame: pd.DataFrame,
    cells: Sequence[CellSummary],
    ranked: Sequence[Standing],
    found: Sequence[Change],
    frame_before: pd.DataFrame | None = None,
    events: str = SAMPLE,
) -> str:
    """Return the page as HTML; the parameters are ``write_page``'s."""
    from plotly.offline import get_plotlyjs

    measured = list(cells)
    looks = Looks([m.engine for m in measured] + [c.measured.engine for c in found])
    shown = [s for s in ranked if s.measured.tried]
    timed = [m for m in measured if m.ok]
    said = finding(cells)
    event = display_event(measured, events)
    rows = change_rows(found) if found else standing_rows(ranked)
    moved = [c for c in found if c.judgement.verdict is not Verdict.SAME]
    text: str = (
        environment("harness.compare")
        .get_template("comparison.html.j2")
        .render(
            looks=looks,
            machines=machine_labels(measured),
            identity=id,
            spread=spread,
            accuracy=accuracy_text,
            accurate=any(accuracy_text(m) for m in measured),
            energy=ENERGY.key,
            metered=any(m.values.get(ENERGY.key) for m in measured),
            dense=any(s.over_dense is not None for s in shown),
            legend=[e for e in looks.engines if any(m.engine == e and m.tried for m in measured)],
            shapes=SHAPES,
            said=said,
            glance=glance(said),
            two_runs=frame_before is not None,
            changes=moved[:ROWS_SHOWN],
            change_count=len(moved),
            headline=headline(found),
            not_judged=not_judged(found),
            drift=common_drift(found),
            disturbance=disturbance(measured),
            change_figure=change_figure(found),
            ranked=shown[:ROWS_SHOWN],
            ranked_count=len(shown),
            failures=failures(measured),
            trade=_by_machine(measured, looks, trade) if timed else [],
            figures=_by_machine(measured, looks, figures) if timed else [],
            event=event,
            facts=facts(frame),
            before=facts(frame_before) if frame_before is not None else [],
            recipe=recipe(frame),
            csv=base64.b64encode(write_rows(rows, Format.csv).encode()).decode(),
            plotly=get_plotlyjs() if event else "",
        )
    )
    return text


def glance(said: Finding) -> list[dict[str, Any]]:
    """Time and memory of the quoted question as bars, each a share of the longest."""
    ok = [m for m in said.quoted if m.ok]
    longest = max((m.seconds or 0.0 for m in ok), default=0.0)
    largest = max((m.memory or 0.0 for m in ok), default=0.0)
    return [
        {
            "measured": m,
            "time": 100 * (m.seconds or 0.0) / longest if m.ok and longest else None,
            "memory": 100 * max(m.memory or 0.0, 0.0) / largest if m.ok and largest else None,
        }
        for m in said.quoted
    ]


Section = tuple[str, str, list[str]]
"""A heading, what to look for, and the panels."""


def _by_machine(
    measured: Sequence[CellSummary],
    looks: Looks,
    draw: Callable[[Sequence[CellSummary], Looks], list[Section]],
) -> list[Section]:
    """Draw the figures of each machine by itself."""
    names = machine_labels(measured)
    return [
        (f"{heading}: {names[number]}" if names else heading, words, panels)
        for number, own in by_environment(measured).items()
        if any(m.ok for m in own)
        for heading, words, panels in draw(own, looks)
    ]


def trade(measured: Sequence[CellSummary], looks: Looks) -> list[Section]:
    """Return the figures that the page leads with: accuracy against time."""
    panels = accuracy_against_time(measured, looks)
    words = (
        "Share of the active voxels that get the right label from the trained network, mean over "
        "events, against the median time per event. Precisions other than fp32 are named, and "
        "marks of fewer events. Up and to the left is better."
    )
    return [("Accuracy against time", words, panels)] if panels else []


def figures(measured: Sequence[CellSummary], looks: Looks) -> list[Section]:
    """Return the other figures by section."""
    sections = [
        (
            "Time against image size",
            "Median time per event; bars reach from the lower to the upper quartile of all "
            "samples. A cross on the upper edge is a cell without a time.",
            against_size(measured, looks, time_of, "s", "time per event"),
        ),
        (
            "Memory against image size",
            "Peak memory of a call above what the process used before it.",
            against_size(measured, looks, memory_of, "bytes", "peak memory"),
        ),
        (
            "Energy against image size",
            "Energy per event, from the counter of the processor or the GPU.",
            against_size(measured, looks, energy_of, "J", "energy per event"),
        ),
        (
            "Against the number of sites",
            "Sparse engines compute on active sites only, so this is the axis that their time and "
            "memory follow; each point is a batch, with its quartiles.",
            against_sites(measured, looks, call_of, "s", "time a call")
            + against_sites(measured, looks, memory_of, "bytes", "peak memory"),
        ),
    ]
    sections.append(
        (
            "Single convolutions",
            "Median time of one convolution, of its gradients and of the building of its map, with "
            "the sites and channels that each level of the network has.",
            against_level(measured, looks, call_of, "s", "time a call"),
        )
    )
    return [section for section in sections if section[2]]
