"""Event displays: truth beside prediction, voxels that differ marked, flat and to be turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.compare.event_display import COLORS, NAMES, by_class, to_element
from harness.events import Label
from harness.study.michel import NOISE, EventMichels
from harness.study.predictions import Predicted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 3
"""Mistakes that are displayed."""

_CLASSES = (Label.HIP, Label.MIP, Label.SHOWER, Label.DELTA, Label.MICHEL)


def mistakes(
    events: Sequence[Predicted], michels: Sequence[EventMichels], count: int = SHOWN
) -> list[int]:
    """Choose the events whose Michel electrons went most wrong.

    Parameters
    ----------
    events : sequence of Predicted
    michels : sequence of EventMichels
        Of the same events.
    count : int
        How many at most.

    Returns
    -------
    list of int
        Numbers of events in which a true Michel electron was missed or one was invented; those
        with the most voxels of Michel electrons classified wrongly first.
    """
    wrong = []
    for i, (event, found) in enumerate(zip(events, michels, strict=True)):
        invented = any(candidate.matched == NOISE for candidate in found.candidates)
        if found.found < found.true_clusters or invented:
            michel = (event.truth == Label.MICHEL) | (event.predicted == Label.MICHEL)
            wrong.append((-int((michel & (event.truth != event.predicted)).sum()), i))
    return [i for _, i in sorted(wrong)[:count]]


def voxel_table(event: Predicted) -> pd.DataFrame:
    """Every voxel of an event with its energy, true class and predicted class."""
    table = pd.DataFrame(event.event.voxels, columns=list("xyz")[: event.event.dim])
    return table.assign(energy=event.event.energies, truth=event.truth, predicted=event.predicted)


def draw_truth_and_prediction(axes: Sequence[Axes], event: Predicted) -> None:
    """Draw truth (left) and prediction (right) seen along z; voxels that differ have a halo."""
    voxels = event.event.voxels
    differs = event.truth != event.predicted
    for panel, labels, title in zip(
        axes, (event.truth, event.predicted), ("truth", "prediction"), strict=True
    ):
        for label in _CLASSES:
            own = labels == label
            panel.scatter(
                voxels[own, 0],
                voxels[own, 1],
                s=2.2,
                c=COLORS[label],
                label=label.name,
                lw=0,
                rasterized=True,
            )
        panel.scatter(
            voxels[differs, 0],
            voxels[differs, 1],
            s=22,
            c="#cfcfcf",
            label="differs",
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


def turned(event: Predicted, identifier: str) -> str:
    """Draw an event to be turned: its voxels by predicted class, those that differ as crosses.

    Parameters
    ----------
    event : Predicted
        In three dimensions.
    identifier : str
        Of the HTML element.

    Returns
    -------
    str
        A Plotly element without the library.
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
            name="truth differs",
            marker={"size": 3, "symbol": "x", "color": "#7a7a7a", "opacity": 0.6},
            text=[NAMES.get(label, "?") for label in event.truth[differs]],
            hovertemplate="%{x}, %{y}, %{z}<extra>truth: %{text}</extra>",
        )
    return to_element(figure, identifier)
