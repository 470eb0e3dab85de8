"""The interactive 3D event of the page: its sites by class, beside the labels of an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.batches import IGNORED, benchmark_batch, labelled_batches
from harness.events.child_reader import open_in_child
from harness.events.classes import CLASS_LOOKS
from harness.events.event import CLASSES, Label
from harness.events.event_set import EventSet
from harness.events.open import SAMPLE
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


def display_event(cells: Sequence[CellSummary], source: str = SAMPLE) -> EventDisplay | None:
    """Draw the event with the most sites of a cell, and the labels of the fastest engine.

    Cells with labels are preferred, then large images, but none of more than ``FINEST`` voxels per
    side, and large batches.

    Parameters
    ----------
    cells : sequence of CellSummary
        The cells of a page.
    source : str
        ``sample``, or the file of events of the cells, whose path records do not hold.

    Returns
    -------
    EventDisplay or None
        None where no cell has these events in three dimensions.

    Raises
    ------
    BadInput
        If a file cannot be read, or is not that of the cells.
    """
    if source == SAMPLE:
        usable = [m for m in cells if m.cell.events.set == SAMPLE and m.cell.dim == 3]
    else:
        with open_in_child(source) as events:
            digest = events.sha256
        usable = [m for m in cells if m.cell.events.sha256 == digest and m.cell.dim == 3]
        if not usable:
            raise BadInput(f"{source} is not the file of events that this run has measured")
    if not usable:
        return None
    best = max(map(_rank, usable))
    chosen = [m for m in usable if _rank(m) == best]
    fastest = min(chosen, key=lambda m: math.inf if m.seconds is None else m.seconds)
    cell, labelling = fastest.cell, fastest.labelling
    position = None if labelling is None else labelling.shown_event
    with open_in_child(source, size=cell.size) as events:
        voxels, labels = _shown_event(cell, events, position)
    truth = to_element(by_class(voxels, labels), cell.size, "event")
    origin = "the sample" if source == SAMPLE else Path(source).name
    words = (
        f"A liquid-argon event of {origin}: {len(voxels):,} active sites of "
        f"{cell.size}³ voxels, which is {100 * len(voxels) / cell.size**3:.2g} %"
    )
    found = None if labelling is None else labelling.labels_of_shown_event(len(voxels))
    if found is None:
        return EventDisplay(truth, words)
    labelled = labels != IGNORED
    right = float((found == labels)[labelled].mean()) if labelled.any() else math.nan
    predicted = to_element(by_class(voxels, found), cell.size, "prediction")
    return EventDisplay(truth, words, predicted, fastest.engine, right)


def _rank(m: CellSummary) -> tuple[bool, bool, int, int]:
    """Order the cells by how good their events are to look at."""
    labelled = m.ok and m.labelling is not None and bool(m.labelling.shown_labels)
    return labelled, m.cell.size <= FINEST, m.cell.size, m.cell.batch


def _shown_event(
    cell: Cell, events: EventSet, position: int | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sites and labels of the event at a position, by default of the largest one."""
    index = cell.events.index
    if index is not None:
        events = events[index : index + 1]
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
