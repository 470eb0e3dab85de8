"""The interactive 3D event of the page: its sites by class, beside the labels of an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.events.batches import IGNORED, benchmark_batch, labelled_batches
from harness.events.classes import CLASS_LOOKS
from harness.events.event import CLASSES, Label
from harness.events.open import SAMPLE, open_events
from harness.events.scene import cube
from harness.results.summary import CellSummary
from harness.spec.cell import Cell

FINEST = 512
"""Voxels per side of the largest images whose voxels can be told apart on a page."""


@dataclass(frozen=True)
class EventDisplay:
    """An event as Plotly elements without the library, and in words.

    Attributes
    ----------
    truth : str
        The sites coloured by their class.
    words : str
        The event in words.
    predicted : str
        The sites coloured by the labels of an engine; empty without them.
    engine : str
        That engine.
    right : float
        Share of the labelled sites that have the right label.
    """

    truth: str
    words: str
    predicted: str = ""
    engine: str = ""
    right: float = 0.0


def display_event(cells: Sequence[CellSummary]) -> EventDisplay | None:
    """Draw the event with the most sites of a cell, and the labels of the fastest engine.

    Cells with labels are preferred, then large images, but none of more than ``FINEST`` voxels per
    side, and large batches.

    Returns
    -------
    EventDisplay or None
        None where the events are a file of the user's, which may have moved, or are not in three
        dimensions.
    """
    usable = [m for m in cells if m.cell.events.set == SAMPLE and m.cell.dim == 3]
    if not usable:
        return None
    best = max(map(_rank, usable))
    chosen = [m for m in usable if _rank(m) == best]
    fastest = min(chosen, key=lambda m: math.inf if m.seconds is None else m.seconds)
    cell, labelling = fastest.cell, fastest.labelling
    voxels, labels = _shown_event(cell, None if labelling is None else labelling.shown_event)
    truth = to_element(by_class(voxels, labels), cell.size, "event")
    words = (
        f"A liquid-argon event of the sample: {len(voxels):,} active sites of "
        f"{cell.size}³ voxels, which is {100 * len(voxels) / cell.size**3:.2g} %"
    )
    found = None if labelling is None else labelling.labels_of_shown_event(len(voxels))
    if found is None:
        return EventDisplay(truth, words)
    right = float((found == labels)[labels != IGNORED].mean())
    predicted = to_element(by_class(voxels, found), cell.size, "prediction")
    return EventDisplay(truth, words, predicted, fastest.engine, right)


def _rank(m: CellSummary) -> tuple[bool, bool, int, int]:
    """Order the cells by how good their events are to look at."""
    labelled = m.ok and m.labelling is not None and bool(m.labelling.shown_labels)
    return labelled, m.cell.size <= FINEST, m.cell.size, m.cell.batch


def _shown_event(cell: Cell, position: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sites and labels of the event at a position, by default of the largest one."""
    events = open_events(SAMPLE, size=cell.size)
    count, seed = cell.events.count, cell.events.seed
    if count:
        batch = next(labelled_batches(events, count, count, seed))
    else:
        batch, _ = benchmark_batch(events, cell.batch, seed)
    numbers = batch["sites"][:, 0]
    own = numbers == (np.bincount(numbers).argmax() if position is None else position)
    return batch["sites"][own, 1:].astype("uint16"), batch["labels"][own]


def by_class(voxels: NDArray[Any], labels: NDArray[Any]) -> Any:
    """Draw voxels as points in space, coloured by class.

    Parameters
    ----------
    voxels : ndarray, shape (N, 3)
    labels : ndarray of int, shape (N,)
        Voxels of none of the five classes are left out.

    Returns
    -------
    plotly.graph_objects.Figure
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for label in list(Label)[:CLASSES]:
        own = voxels[labels == label]
        if len(own):
            figure.add_trace(
                go.Scatter3d(
                    x=own[:, 0],
                    y=own[:, 1],
                    z=own[:, 2],
                    mode="markers",
                    name=f"{CLASS_LOOKS[label].legend}, {len(own)}",
                    marker={"size": 1.8, "color": CLASS_LOOKS[label].color},
                    hovertemplate="%{x}, %{y}, %{z}<extra>"
                    + CLASS_LOOKS[label].legend
                    + "</extra>",
                )
            )
    return figure


def to_element(figure: Any, size: int, identifier: str) -> str:
    """Lay a figure of points in space out and return it as HTML without Plotly's library.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
    size : int
        Voxels per side of the cube.
    identifier : str
        Of the HTML element, once a page.
    """
    figure.update_layout(cube(size))
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        default_height="460px",
        div_id=identifier,
        config={
            "displaylogo": False,
            "responsive": True,
            "scrollZoom": False,
            "modeBarButtonsToRemove": [
                "sendChartToCloud",
                "tableRotation",
                "resetCameraLastSave3d",
            ],
        },
    )
    return html
