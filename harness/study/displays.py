"""Displays of events: true beside predicted classes, in a projection and in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.accuracy.dbscan import NOISE
from harness.accuracy.michel import EventMichels
from harness.compare.event_display import by_class, to_element
from harness.events import Label
from harness.events.classes import CLASS_LOOKS
from harness.study.predictions import Predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 3
"""Number of displayed mistakes."""

_CLASSES = (Label.HIP, Label.MIP, Label.SHOWER, Label.DELTA, Label.MICHEL)


def find_mistakes(
    events: Sequence[Predicted], michels: Sequence[EventMichels], count: int = SHOWN
) -> list[int]:
    """Return the events with the worst reconstruction of Michel electrons.

    Parameters
    ----------
    events : sequence of Predicted
        Events with predictions.
    michels : sequence of EventMichels
        Michel electrons of the same events.
    count : int
        Maximum number of events.

    Returns
    -------
    list of int
        Numbers of events with a missed true Michel electron or a candidate without a true one, in
        descending order of the number of misclassified voxels of Michel electrons.
    """
    wrong = []
    for i, (event, found) in enumerate(zip(events, michels, strict=True)):
        unmatched = any(candidate.matched == NOISE for candidate in found.candidates)
        if found.found < found.true_clusters or unmatched:
            michel = (event.truth == Label.MICHEL) | (event.predicted == Label.MICHEL)
            wrong.append((-int((michel & (event.truth != event.predicted)).sum()), i))
    return [i for _, i in sorted(wrong)[:count]]


def voxel_table(event: Predicted) -> pd.DataFrame:
    """Return the voxels of an event with their energy, true class and predicted class."""
    table = pd.DataFrame(event.event.voxels, columns=list("xyz")[: event.event.dim])
    return table.assign(energy=event.event.energies, truth=event.truth, predicted=event.predicted)


def draw_truth_and_prediction(axes: Sequence[Axes], event: Predicted) -> None:
    """Draw true (left) and predicted classes (right) along z; wrong voxels have a grey halo."""
    voxels = event.event.voxels
    differs = event.truth != event.predicted
    for panel, labels, title in zip(
        axes, (event.truth, event.predicted), ("true classes", "predicted classes"), strict=True
    ):
        for label in _CLASSES:
            own = labels == label
            panel.scatter(
                voxels[own, 0],
                voxels[own, 1],
                s=2.2,
                c=CLASS_LOOKS[label].color,
                label=CLASS_LOOKS[label].name,
                lw=0,
                rasterized=True,
            )
        panel.scatter(
            voxels[differs, 0],
            voxels[differs, 1],
            s=22,
            c="#9a9a9a",
            alpha=0.5,
            label="wrong class",
            lw=0,
            zorder=0.9,
            rasterized=True,
        )
        panel.set_aspect("equal")
        panel.set_title(title)
        panel.set_xlabel("x [voxels]")
    axes[0].set_ylabel("y [voxels]")
    axes[1].legend(
        frameon=False, fontsize=7, markerscale=2.5, loc="upper left", bbox_to_anchor=(1, 1)
    )


def rotatable(event: Predicted, identifier: str) -> str:
    """Return an event in three dimensions, coloured by predicted class, wrong voxels as crosses.

    Parameters
    ----------
    event : Predicted
        Event in three dimensions.
    identifier : str
        Identifier of the HTML element.

    Returns
    -------
    str
        HTML element of Plotly, without the library.
    """
    voxels = event.event.voxels.astype(np.uint16)
    figure = by_class(voxels, event.predicted)
    differs = event.truth != event.predicted
    if differs.any():
        x, y, z = voxels[differs].T
        figure.add_scatter3d(
            x=x,
            y=y,
            z=z,
            mode="markers",
            name="wrong class",
            marker={"size": 3, "symbol": "x", "color": "#7a7a7a", "opacity": 0.6},
            text=[CLASS_LOOKS[Label(label)].legend for label in event.truth[differs]],
            hovertemplate="%{x}, %{y}, %{z}<extra>truth: %{text}</extra>",
        )
    return to_element(figure, event.event.size, identifier)
