"""Writes the study's page: the figures of 2018 in the talk's order, with what they show here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from harness.events import open_events
from harness.events.statistics import summarise
from harness.report.html import environment, save
from harness.report.provenance import facts
from harness.run.progress import format_duration
from harness.study import displays, figures, results
from harness.study.accuracy_sections import (
    classes_section,
    learning_section,
    main_test,
    michel_section,
    sizes_section,
    two_classes_section,
)
from harness.study.cost_sections import cost_section, planes_section, scaling_section
from harness.study.dilation import dilation_table
from harness.study.parts import Study
from harness.study.predictions import Predicted
from harness.study.results import Results
from harness.study.sections import SIZES, Section, Turned, Writer

DILATIONS = 5
_STATISTICS_EVENTS = 48


def write_page(study: Study) -> Path:
    """Write ``index.html`` and the figures beside it from what a study's folder holds.

    Returns
    -------
    Path
        The page.
    """
    from plotly.offline import get_plotlyjs

    found = results.read(study)
    writer = Writer(found)
    sections = [
        section
        for section in (
            events_section(writer),
            dilation_section(writer),
            learning_section(writer),
            cost_section(writer),
            scaling_section(writer),
            sizes_section(writer),
            classes_section(writer),
            michel_section(writer),
            two_classes_section(writer),
            planes_section(writer),
        )
        if section.items
    ]
    templates = environment("harness.study")
    text = templates.get_template("study.html.j2").render(
        scale=found.scale,
        claim=claim(found),
        lead=lead(found),
        sections=sections,
        missing=missing(found),
        plotly=get_plotlyjs(),
        command=f"python -m harness study --out DIR --scale {study.scale} "
        f"--backend {study.backend}"
        + "".join(f" --also {name}" for name in study.also)
        + f" --precision {study.precision}",
        facts=facts(found.frame),
    )
    return save(text, study.out / "index.html", "--out")


def claim(found: Results) -> str:
    """Say the most important result in one line."""
    test = main_test(found)
    if test is None:
        return "The study has not tested a network yet"
    return (
        f"{found.study.backend} reaches a nonzero accuracy of {test.accuracy.mean:.3f} on held-out "
        f"events of {test.training.crop or test.test.size} px"
    )


def lead(found: Results) -> str:
    """Say how that result was reached."""
    test = main_test(found)
    if test is None:
        return found.scale.describe().splitlines()[0]
    curve = next(c for c in found.curves if c.training == test.training)
    said = (
        f"{len(test.accuracy.events)} events that it never learnt from, after "
        f"{len(curve.steps):,} iterations on {curve.events:,} events (batch "
        f"{test.training.batch}) in {format_duration(float(curve.steps['seconds'].iloc[-1]))} of "
        "training."
    )
    early = results.reached(curve, 1200.0)
    if early is not None and curve.steps["seconds"].iloc[-1] > 1200:
        said += (
            f" After 20 minutes, at iteration {int(early['step']):,}, it had "
            f"{early['accuracy']:.3f} on the first {int(early['events'])} of them."
        )
    return said


def events_section(w: Writer) -> Section:
    """What the events are like."""
    section = Section("The events: sparse, locally dense")
    event = open_events("sample", size=192)[0]
    truth = Predicted(event, event.labels.astype(np.int64))
    section.items.append(
        Turned(
            f"A sample event with its true classes, to be turned: {len(event):,} of {event.size}³ "
            "voxels are active.",
            displays.turned(truth, "event"),
        )
    )
    rows = []
    for size in SIZES:
        found = summarise(open_events("sample", size=size)[:_STATISTICS_EVENTS])
        rows.append(
            {
                "size [px]": size,
                "voxels an event": found.voxels,
                "active [%]": 100 * found.occupancy,
                "active of 27 neighbours": found.neighbours,
            }
        )
    frame = pd.DataFrame(rows)
    section.items.append(
        w.table(
            "occupancy",
            "Occupancy",
            f"Of {_STATISTICS_EVENTS} sample events a size, between "
            f"{frame['active [%]'].min():.2g} and {frame['active [%]'].max():.2g} % of the "
            "voxels are active, yet "
            f"{frame['active of 27 neighbours'].mean():.0f} of the 27 around an active one.",
            frame,
        )
    )
    return section


def dilation_section(w: Writer) -> Section:
    """Why ordinary convolutions do not stay sparse."""
    event = open_events("sample", size=192)[0]
    frame = dilation_table(event.voxels, event.size, DILATIONS)
    last = frame.iloc[-1]
    growth = last["ordinary"] / last["submanifold"]
    drawn = w.figure(
        "dilation",
        "Active sites after ordinary convolutions",
        f"Ordinary convolutions make {int(last['submanifold']):,} active sites "
        f"{int(last['ordinary']):,} after {DILATIONS} layers, {growth:.0f} times as many; "
        "submanifold convolutions keep them.",
        frame,
        partial(figures.draw_dilation, table=frame),
        size=(5.6, 3.2),
    )
    return Section("The dilation problem", items=[drawn])


def missing(found: Results) -> list[str]:
    """List what the scale asks for and the folder does not hold, with the reason."""
    lines = []
    trained = {c.training.name for c in found.curves}
    for training in found.scale.trainings:
        if training.name not in trained:
            backend = found.study.backend_of(training)
            lines.append(f"The training {training.name}: {backend} has not trained here.")
    lines += [
        f"{m.engine}, {m.where}: {m.side.outcome}{f' ({m.side.reason})' if m.side.reason else ''}"
        for m in found.cells
        if not m.ok
    ]
    return lines
