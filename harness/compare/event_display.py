"""The interactive 3D event of the page, its sites coloured by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.events.batches import benchmark_batch
from harness.events.classes import CLASS_LOOKS
from harness.events.event import CLASSES, Label
from harness.events.open import SAMPLE, open_events
from harness.events.scene import cube
from harness.results.summary import CellSummary


def event_of(measured: CellSummary) -> tuple[str, str] | None:
    """Draw the event with the most sites of a cell's batch.

    Returns
    -------
    tuple of str or None
        The Plotly element without the library, and what it shows in words; None where the events
        are a file of the user's, which may have moved, or are not in three dimensions.
    """
    cell = measured.cell
    if cell.events.set != SAMPLE or cell.dim != 3:
        return None
    batch, _ = benchmark_batch(open_events(SAMPLE, size=cell.size), cell.batch, cell.events.seed)
    number = batch["sites"][:, 0]
    largest = number == np.bincount(number).argmax()
    voxels, labels = batch["sites"][largest, 1:].astype("uint16"), batch["labels"][largest]
    element = to_element(by_class(voxels, labels), cell.size, "event")
    words = (
        f"A liquid-argon event of the sample: {len(voxels):,} active sites of "
        f"{cell.size}³ voxels, which is {100 * len(voxels) / cell.size**3:.2g} %"
    )
    return element, words


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
