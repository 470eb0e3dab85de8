"""The section of the page on the events: their occupancy, and the dilation problem."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from harness.events import Event, open_events
from harness.events.statistics import summarise
from harness.study import displays, plots
from harness.study.dilation import dilation_table
from harness.study.document import SIZES, Figure, PageWriter, RotatableEvent, Section
from harness.study.predictions import Predicted

DILATIONS = 5
_STATISTICS_EVENTS = 48


def events_section(w: PageWriter) -> Section:
    """Return the section on the sample events and the growth of their sites under convolutions."""
    section = Section("Events: sparse, but locally dense")
    event = open_events("sample", size=192)[0]
    truth = Predicted(event, event.labels.astype(np.int64))
    section.items.append(
        RotatableEvent(
            f"A sample event with its true classes: {len(event):,} of {event.size}³ voxels are "
            "active.",
            displays.rotatable(truth, "event"),
        )
    )
    rows = []
    for size in SIZES:
        found = summarise(open_events("sample", size=size)[:_STATISTICS_EVENTS])
        rows.append(
            {
                "size [px]": size,
                "voxels per event": found.voxels,
                "active [%]": 100 * found.occupancy,
                "active of 27 neighbours": found.neighbours,
            }
        )
    frame = pd.DataFrame(rows)
    section.items.append(
        w.table(
            "occupancy",
            "Occupancy",
            f"In {_STATISTICS_EVENTS} sample events per size, {frame['active [%]'].min():.2g} to "
            f"{frame['active [%]'].max():.2g} % of the voxels are active, but on average "
            f"{frame['active of 27 neighbours'].mean():.0f} of the 27 voxels around an active one.",
            frame,
        )
    )
    section.items.append(_dilation_figure(w, event))
    return section


def _dilation_figure(w: PageWriter, event: Event) -> Figure:
    """Return the figure of the growth of active sites under ordinary convolutions."""
    frame = dilation_table(event.voxels, event.size, DILATIONS)
    last = frame.iloc[-1]
    growth = last["ordinary"] / last["submanifold"]
    return w.figure(
        "dilation",
        "The dilation problem",
        f"After {DILATIONS} ordinary convolutions, {int(last['submanifold']):,} active sites have "
        f"become {int(last['ordinary']):,}, {growth:.0f} times as many. Submanifold convolutions "
        "keep the active sites.",
        frame,
        partial(plots.draw_dilation, table=frame),
    )
