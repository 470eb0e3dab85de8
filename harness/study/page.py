"""Writes the study's page: the figures of 2018 in the talk's order, with what they show here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.events import open_events
from harness.events.statistics import summarise
from harness.measured import Measured
from harness.metrics import format_value
from harness.progress import duration
from harness.report.page import environment, facts
from harness.report.style import Looks
from harness.study import displays, figures, published, results
from harness.study.cells import DENSE, PLANES, TABLE
from harness.study.conduct import Study
from harness.study.dilation import dilation_table
from harness.study.figures import Figure, publish
from harness.study.predictions import Predicted
from harness.study.results import Curve, Evaluated, Overtaking, Results, Sweep
from harness.study.scales import DENSE as DENSE_ROLE
from harness.study.scales import SPARSE

DILATIONS = 5
SIZES = (192, 512, 768)
_STATISTICS_EVENTS = 48


@dataclass(frozen=True)
class Table:
    """A table of the page; its numbers lie beside the page as CSV."""

    name: str
    title: str
    sentence: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Turned:
    """An event of the page that can be turned."""

    sentence: str
    element: str


@dataclass
class Section:
    """One part of the page: its sentences, then tables, figures and events in order."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)
    items: list[Table | Figure | Turned] = field(default_factory=list)


class _Writer:
    """Collects figures and tables of one page into its folder."""

    def __init__(self, found: Results) -> None:
        self.found = found
        self.folder = found.study.out / "figures"
        self.looks = Looks([*found.study.engines.sparse, *found.study.engines.dense])
        self.sparse = found.study.backend

    def table(
        self,
        name: str,
        title: str,
        sentence: str,
        frame: pd.DataFrame,
        formats: Mapping[str, Callable[[Any], str]] | None = None,
    ) -> Table:
        """Write a table as CSV and format it for the page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.folder / f"{name}.csv", index=False)
        formats = formats or {}
        rows = [
            [
                formats.get(str(column), plain)(value)
                for column, value in zip(frame.columns, row, strict=True)
            ]
            for row in frame.itertuples(index=False)
        ]
        return Table(name, title, sentence, [str(c) for c in frame.columns], rows)

    def figure(
        self,
        name: str,
        title: str,
        sentence: str,
        frame: pd.DataFrame,
        draw: Callable[[Any], None],
        **options: Any,
    ) -> Figure:
        """Draw a figure."""
        return publish(self.folder, name, title, sentence, frame, draw, **options)


def plain(value: Any) -> str:
    """Write a value of a table: an en dash for what is not known, numbers to three digits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def share(value: float) -> str:
    """Write a fraction with the four digits in which accuracies differ."""
    return "–" if value is None or value != value else f"{value:.4f}"


def times(value: float | None) -> str:
    """Write a factor."""
    if value is None or value != value:
        return "–"
    return f"{value:,.0f}×" if value >= 1000 else f"{value:.3g}×"


def write_page(study: Study) -> Path:
    """Write ``index.html`` and the figures beside it from what a study's folder holds.

    Returns
    -------
    Path
        The page.
    """
    from jinja2 import ChoiceLoader, PackageLoader
    from plotly.offline import get_plotlyjs

    found = results.read(study)
    writer = _Writer(found)
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
    templates = environment()
    templates.loader = ChoiceLoader([PackageLoader("harness.study", "templates"), templates.loader])
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
    path = study.out / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


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
        f"{test.training.batch}) in {duration(float(curve.steps['seconds'].iloc[-1]))} of training."
    )
    early = results.reached(curve, 1200.0)
    if early is not None and curve.steps["seconds"].iloc[-1] > 1200:
        said += (
            f" After 20 minutes, at iteration {int(early['step']):,}, it had "
            f"{early['accuracy']:.3f} on the first {int(early['events'])} of them."
        )
    return said


def main_test(found: Results) -> Evaluated | None:
    """Return the test of the main training on sample events like those it learnt from."""
    fit = (
        t
        for t in found.tests
        if t.training.role == SPARSE and t.test.size == t.training.size and not t.test.michel
    )
    return next(fit, None)


def events_section(w: _Writer) -> Section:
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


def dilation_section(w: _Writer) -> Section:
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


def learning_section(w: _Writer) -> Section:
    """Accuracy and loss against iterations, time and energy."""
    section = Section("Dense and sparse learn the same")
    groups = [
        (
            "whole",
            "whole events",
            [c for c in w.found.curves if _is_plain(c) and not c.training.crop],
        ),
        ("crops", "crops", [c for c in w.found.curves if _is_plain(c) and c.training.crop]),
    ]
    for key, words, curves in groups:
        if not curves:
            continue
        frame = figures.curve_table(curves)
        ends = ", ".join(f"{c.training.name} {c.smooth['accuracy'].iloc[-1]:.3f}" for c in curves)
        for along, quantity, title in (
            ("step", "accuracy", f"Accuracy against iterations, {words}"),
            ("step", "loss", f"Loss against iterations, {words}"),
            ("seconds", "accuracy", f"Accuracy against training time, {words}"),
        ):
            sentence = (
                f"At the end, over the last {results.SMOOTHED} steps: {ends}."
                if quantity == "accuracy" and along == "step"
                else _time_sentence(curves)
                if along == "seconds"
                else "Lines are means over the last "
                f"{results.SMOOTHED} steps; every step is in the CSV file."
            )
            section.items.append(
                w.figure(
                    f"{quantity}-against-{along}-{key}",
                    title,
                    sentence,
                    frame,
                    partial(figures.draw_curves, curves=curves, along=along, quantity=quantity),
                )
            )
        counted = [c for c in curves if c.counted_joules]
        if counted:
            spent = ", ".join(
                f"{c.training.name} {c.steps['joules'].iloc[-1] / 1000:.3g} kJ" for c in counted
            )
            section.items.append(
                w.figure(
                    f"accuracy-against-joules-{key}",
                    f"Accuracy against energy, {words}",
                    f"The trainings spent {spent}.",
                    figures.curve_table(counted),
                    partial(
                        figures.draw_curves, curves=counted, along="joules", quantity="accuracy"
                    ),
                )
            )
    if section.items and not any(c.counted_joules for c in w.found.curves):
        section.paragraphs.append(
            "This machine has no energy counter that may be read: joules are not known."
        )
    twin = twins_sentence(w.found)
    if twin:
        section.paragraphs.append(twin)
    return section


def _is_plain(curve: Curve) -> bool:
    return curve.training.dim == 3 and curve.training.classes == 5


def _time_sentence(curves: Sequence[Curve]) -> str:
    each = ", ".join(
        f"{c.training.name} {format_value(float(c.steps['step_seconds'].median()), 's')}"
        for c in curves
    )
    return f"A step takes, in the median: {each}."


def twins_sentence(found: Results) -> str:
    """Compare dense and sparse on the same held-out crops."""
    tested = {
        t.training.role: t
        for t in found.tests
        if t.training.crop and t.training.dim == 3 and not t.test.michel
    }
    if not {"sparse", "dense"} <= set(tested):
        return ""
    sparse, dense = tested["sparse"].accuracy, tested["dense"].accuracy
    return (
        f"From the same weights on the same batches, sparse ends at {sparse.mean:.4f} and its "
        f"dense twin at {dense.mean:.4f} on {len(dense.events)} held-out crops: a difference of "
        f"{100 * (sparse.mean - dense.mean):+.2f} points."
    )


def cost_section(w: _Writer) -> Section:
    """Table II and the two factors."""
    section = Section("What it costs: Table II, then and now")
    device = w.found.scale.device
    machine = "a V100" if device == "cuda" else "a Xeon Silver 4110"
    held = "torch's allocated maximum" if device == "cuda" else "all that the process held"
    memory = results.whole_memory(w.found.frame, device)
    frame = results.cost_table(w.found.of(TABLE), memory, device)
    if len(frame):
        section.items.append(
            w.table(
                "table-2",
                "Table II",
                f"Published on {machine} in 2018 beside this machine; a ratio above 1 is in favour "
                f"of this machine. Memory is {held}, as the study logged it. Batches of more than "
                f"{w.found.scale.costs.checked_events} events are timed without the comparison "
                "with the float64 truth, which takes too long or too much memory there; the same "
                "engine is checked on smaller batches.",
                frame.assign(
                    published=_with_units(frame, "published"),
                    measured=_with_units(frame, "measured"),
                ).drop(columns="unit"),
                {"published over measured": times},
            )
        )
    factors = results.factor_table(w.found.of(DENSE), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-3d",
                "Dense over sparse",
                f"{factor_sentence(factors, 3)} Memory is what a call adds to its process.",
                _in_units(factors),
                {"time factor": times, "memory factor": times},
            )
        )
    return section


def _with_units(frame: pd.DataFrame, column: str) -> list[str]:
    return [
        format_value(value, unit) for value, unit in zip(frame[column], frame["unit"], strict=True)
    ]


def _in_units(factors: pd.DataFrame) -> pd.DataFrame:
    """Write times and memories of a table of factors with their units."""
    written = factors.drop(columns="dim")
    for name in written.columns:
        for mark, unit in ((" [s]", "s"), (" [bytes]", "bytes")):
            if str(name).endswith(mark):
                written[name] = [format_value(value, unit) for value in factors[name]]
    return written.rename(columns=lambda name: str(name).split(" [s]")[0].split(" [bytes]")[0])


def factor_sentence(factors: pd.DataFrame, dim: int) -> str:
    """Say what the published factors are here, for the same configuration if it was measured."""
    known = published.FACTORS[dim]
    setting = (
        "on a V100, 192 px, batch 4, with a dense network 18 times as large"
        if dim == 3
        else "its abstract does not say for which size and batch"
    )
    tests = factors[factors["pass"] == "test"].dropna(subset=["time factor"])
    said = (
        f"The study found {known['memory']:g}× memory and {known['time']:g}× time for inference "
        f"in {dim}D ({setting})."
    )
    if tests.empty:
        return f"{said} Here no dense configuration gave a time."
    same = tests[(tests["size [px]"] == 192) & (tests["batch"] == 4)]
    if dim == 3 and len(same):
        said += " Here, for the same size and batch:"
    else:
        volume = tests["size [px]"] ** dim * tests["batch"]
        same = tests[volume == volume.max()]
        largest = f"{same.iloc[0]['size [px]']} px, batch {same.iloc[0]['batch']}"
        said += (
            f" That size and batch gave no dense time here; for the largest that did ({largest}):"
            if dim == 3
            else f" Here, for the largest that was measured ({largest}):"
        )
    parts = [
        f"{row['dense engine']} {times(row['memory factor'])} memory, {times(row['time factor'])} "
        "time"
        for _, row in same.iterrows()
    ]
    return (
        f"{said} {'; '.join(parts)}. The engine called dense computes the same function as sparse."
    )


def scaling_section(w: _Writer) -> Section:
    """How costs grow, and where dense overtakes."""
    section = Section("How it scales")
    for sweep in results.sweeps(w.found):
        if sweep.name.startswith("dense"):
            section.items.append(_occupancy_figure(w, sweep))
            continue
        laws = sweep.fit_table()
        section.items.append(
            w.figure(
                sweep.name,
                f"Against {sweep.along}, {sweep.held}",
                _law_sentence(sweep, w.sparse),
                sweep.table,
                partial(figures.draw_sweep, sweep=sweep, looks=w.looks),
                size=(9.2, 3.6),
                panels=2,
            )
        )
        section.items.append(
            w.table(
                f"{sweep.name}-fits",
                f"Exponents against {sweep.along}",
                "Least squares on logarithms, with the 95 % interval of the exponent.",
                laws,
            )
        )
    return section


def _law_sentence(sweep: Sweep, engine: str) -> str:
    parts = []
    for phase, word in (("forward", "inference"), ("step", "training")):
        law = sweep.fit(engine, phase, "seconds")
        if law is not None:
            parts.append(f"{word} time grows with the power {law.exponent:.2f}")
    return f"With {engine}, {' and '.join(parts)} of {sweep.along}." if parts else ""


def overtaking_sentence(found: Overtaking | None, word: str, sparse: str) -> str:
    """Say where dense overtakes; empty where that was not measured."""
    if found is None:
        return ""
    if found.at is None:
        return f"in {word} dense never overtakes {sparse}, not even in the fullest cube measured"
    if found.from_the_start:
        return f"in {word} dense is the quicker one already at {100 * found.at:.2g} % active voxels"
    return f"in {word} dense overtakes {sparse} at {100 * found.at:.2g} % active voxels"


def _occupancy_figure(w: _Writer, sweep: Sweep) -> Figure:
    parts = [
        overtaking_sentence(results.overtaking(sweep, w.sparse, "dense", phase), word, w.sparse)
        for phase, word in (("forward", "inference"), ("step", "training"))
    ]
    return w.figure(
        sweep.name,
        "Where dense overtakes sparse",
        f"In {sweep.held}, {'; '.join(filter(None, parts))}. Detector events have hundredths of a "
        "per cent.",
        sweep.table,
        partial(figures.draw_times, sweep=sweep, looks=w.looks),
        size=(6.2, 3.6),
    )


def sizes_section(w: _Writer) -> Section:
    """Nonzero accuracy for the three sizes, and for the dense networks."""
    section = Section("Accuracy on held-out events")
    tests = [t for t in w.found.tests if t.training.classes == 5 and t.training.dim == 3]
    if not tests:
        return section
    reason = dense_sentence(w.found)
    if reason:
        section.paragraphs.append(reason)
    frame = results.accuracy_table(tests)
    section.items.append(
        w.table(
            "accuracy",
            "Nonzero accuracy",
            "Mean and spread over events. A test size that differs from the training's is the same "
            "network on larger images.",
            frame,
            dict.fromkeys(("nonzero accuracy", "spread over events", "error of the mean"), share),
        )
    )
    whole = [t for t in tests if not t.training.crop and not t.test.michel]
    if whole:
        shown = results.accuracy_table(whole).assign(
            label=[f"{t.training.name}\non {t.test.size} px" for t in whole],
            published=[_published_accuracy(t) for t in whole],
        )
        section.items.append(
            w.figure(
                "accuracy-by-size",
                "Accuracy for the three spatial sizes",
                "; ".join(f"{t.accuracy.mean:.3f} at {t.test.size} px" for t in whole)
                + ". The study trained one network a size with batches of 64.",
                shown,
                partial(figures.draw_accuracies, table=shown),
                size=(6.2, 3.4),
            )
        )
    return section


def dense_sentence(found: Results) -> str:
    """Say why dense networks learn from crops: what whole events would take, by volume."""
    steps = [
        m
        for m in found.of(DENSE)
        if m.engine == "dense" and m.cell["phase"] == "step" and m.ok and m.memory
    ]
    if not steps or not any(t.crop and t.role == DENSE_ROLE for t in found.scale.trainings):
        return ""
    largest = max(steps, key=_volume)
    per_voxel = (largest.memory or 0.0) / _volume(largest)
    needs = ", ".join(
        f"{format_value(per_voxel * 4 * size**3, 'bytes')} at {size} px" for size in SIZES
    )
    has = found.frame["machine.memory_bytes"].dropna().max()
    return (
        f"Dense networks learn from crops. A training step of the dense twin takes "
        f"{format_value(largest.memory, 'bytes')} for {largest.cell['batch']} cubes of "
        f"{largest.cell['size']} px, and memory follows the volume: by that, whole events would "
        f"take {needs} (estimated, batch 4). This machine has {format_value(float(has), 'bytes')}."
    )


def _volume(measured: Measured) -> int:
    """Voxels of a three-dimensional batch, active or not."""
    return int(measured.cell["batch"]) * int(measured.cell["size"]) ** 3


def _published_accuracy(test: Evaluated) -> float:
    network = "sparse" if test.training.role == SPARSE else "dense"
    batches = (test.training.batch, 64)
    keys = [(network, test.test.size, batch) for batch in batches]
    return next((published.ACCURACY[key][0] for key in keys if key in published.ACCURACY), math.nan)


def classes_section(w: _Writer) -> Section:
    """Accuracy by class and the confusion matrix of the main test."""
    section = Section("Class by class")
    test = main_test(w.found)
    if test is None:
        return section
    _add_classes(w, section, test, "")
    every = [
        t
        for t in w.found.tests
        if t.training.classes == 5 and t.training.dim == 3 and not t.training.crop
    ]
    measures = dict.fromkeys(("accuracy", "purity", "IoU"), share)
    section.items.append(
        w.table(
            "classes-all-tests",
            "Every test of whole events",
            "Accuracy is the share of a class's voxels that is found, purity the share of the "
            "voxels predicted as a class that is right.",
            results.class_table(every),
            measures,
        )
    )
    return section


def _add_classes(w: _Writer, section: Section, test: Evaluated, suffix: str) -> None:
    frame = results.class_table([test])
    found = frame.dropna(subset=["accuracy"]).sort_values("accuracy")
    section.items.append(
        w.figure(
            f"classes{suffix}",
            "Accuracy, purity and IoU of each class",
            f"{test.title}: best is {found.iloc[-1]['class']} with "
            f"{found.iloc[-1]['accuracy']:.3f} of its voxels found, worst "
            f"{found.iloc[0]['class']} with {found.iloc[0]['accuracy']:.3f}.",
            frame,
            partial(figures.draw_classes, table=frame),
            size=(6.6, 3.2),
        )
    )
    shares = results.confusion_table(test)
    section.items.append(
        w.figure(
            f"confusion{suffix}",
            "Confusion matrix",
            confusion_sentence(shares),
            shares,
            partial(figures.draw_confusion, shares=shares),
            size=(4.8, 4.2),
        )
    )


def confusion_sentence(shares: pd.DataFrame) -> str:
    """Name the largest confusion."""
    worst, name, other = -1.0, "", ""
    for row in shares.index:
        for column in shares.columns:
            value = float(shares.loc[row, column])
            if row != column and value > worst:
                worst, name, other = value, str(row), str(column)
    return f"The largest confusion: {100 * worst:.1f} % of {name} voxels are taken for {other}."


def michel_section(w: _Writer) -> Section:
    """Michel electrons, and displays of the mistakes."""
    section = Section("Michel electrons")
    tests = [t for t in w.found.tests if t.training.classes == 5 and not t.training.crop]
    tests = [t for t in tests if t.training.dim == 3]
    if not tests:
        return section
    frame = results.michel_table(tests)
    rich = next((t for t in tests if t.test.michel), None)
    sentence = "No held-out events with many Michel electrons were tested."
    if rich is not None:
        s = rich.michel_summary
        sentence = (
            f"On Michel-rich events {s.found} of {s.true_clusters} are identified, and "
            f"{s.matched} of {s.candidates} candidates are Michel electrons."
        )
    section.items.append(
        w.table(
            "michel",
            "Identification and clusters",
            f"{sentence} Clusters by DBSCAN, candidates at the ends of predicted MIP tracks, as in "
            "the study.",
            frame,
            {name.replace("_", " "): share for name in published.MICHEL},
        )
    )
    if rich is None:
        return section
    wrong = displays.mistakes(rich.events, rich.michels)
    for rank, number in enumerate(wrong, 1):
        event, found = rich.events[number], rich.michels[number]
        differ = int((event.truth != event.predicted).sum())
        section.items.append(
            w.figure(
                f"mistake-{rank}",
                f"Mistake {rank}: truth beside prediction",
                f"{found.found} of {found.true_clusters} Michel electrons found with "
                f"{len(found.candidates)} candidates; {differ:,} of {len(event.truth):,} voxels "
                "differ (circles).",
                displays.voxel_table(event),
                partial(displays.draw_truth_and_prediction, event=event),
                size=(9.2, 4.2),
                panels=2,
            )
        )
    if wrong:
        event = rich.events[wrong[0]]
        section.items.append(
            Turned(
                "Mistake 1 to be turned: colours are predictions, crosses mark voxels whose true "
                "class differs.",
                displays.turned(event, "mistake"),
            )
        )
    return section


def two_classes_section(w: _Writer) -> Section:
    """Track against shower."""
    section = Section("Track against shower")
    for test in (t for t in w.found.tests if t.training.classes == 2):
        _add_classes(w, section, test, "-2-classes")
        section.paragraphs.append(
            f"{test.title}: nonzero accuracy {test.accuracy.mean:.4f}, spread over events "
            f"{test.accuracy.std:.4f}."
        )
    return section


def planes_section(w: _Writer) -> Section:
    """The same in two dimensions."""
    section = Section("In two dimensions")
    factors = results.factor_table(w.found.of(PLANES), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-2d",
                "Dense over sparse in 2D",
                factor_sentence(factors, 2),
                _in_units(factors),
                {"time factor": times, "memory factor": times},
            )
        )
    tests = [t for t in w.found.tests if t.training.dim == 2]
    if tests:
        section.items.append(
            w.table(
                "accuracy-2d",
                "Accuracy in 2D",
                "Events projected on the xy plane; dense and sparse learn from the same batches.",
                results.accuracy_table(tests),
                dict.fromkeys(
                    ("nonzero accuracy", "spread over events", "error of the mean"), share
                ),
            )
        )
    return section


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
