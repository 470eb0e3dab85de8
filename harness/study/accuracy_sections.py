"""The sections of the page on the accuracy of the classification and on Michel electrons."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from harness.results.summary import CellSummary
from harness.spec.metrics import format_value
from harness.study import displays, plots, published, tables
from harness.study.cells import DENSE
from harness.study.document import (
    ACCURACY_FORMATS,
    SIZES,
    WIDE,
    PageWriter,
    RotatableEvent,
    Section,
    format_fraction,
)
from harness.study.results import Evaluation, Results
from harness.study.scales import DENSE as DENSE_ROLE
from harness.study.scales import SPARSE


def main_test(found: Results) -> Evaluation | None:
    """Return the test of the main training on sample events of its own size."""
    suitable = (
        t
        for t in found.tests
        if t.training.role == SPARSE and t.test.size == t.training.size and not t.test.michel
    )
    return next(suitable, None)


def sizes_section(w: PageWriter) -> Section:
    """Return the section on the nonzero accuracy of all trainings."""
    section = Section("Accuracy on held-out events")
    tests = [t for t in w.found.tests if t.training.classes == 5 and t.training.dim == 3]
    if not tests:
        return section
    reason = dense_sentence(w.found)
    if reason:
        section.paragraphs.append(reason)
    frame = tables.accuracy_table(tests)
    section.items.append(
        w.table(
            "accuracy",
            "Nonzero accuracy",
            "Mean and standard deviation over events. Where the test size differs from the size of "
            "the training, the same network is tested on larger images.",
            frame,
            ACCURACY_FORMATS,
        )
    )
    whole = [t for t in tests if not t.training.crop and not t.test.michel]
    if whole:
        shown = tables.accuracy_table(whole).assign(
            label=[f"{t.training.name}\non {t.test.size} px" for t in whole],
            published=[_published_accuracy(t) for t in whole],
        )
        section.items.append(
            w.figure(
                "accuracy-by-size",
                "Accuracy for the three spatial sizes",
                "; ".join(f"{t.accuracy.mean:.3f} at {t.test.size} px" for t in whole)
                + ". The 2018 study trained one network per size, with batches of 64.",
                shown,
                partial(plots.draw_accuracies, table=shown),
                size=WIDE,
            )
        )
    return section


def dense_sentence(found: Results) -> str:
    """Return the reason why dense networks are trained on crops: the memory of whole events."""
    steps = [
        m
        for m in found.of(DENSE)
        if m.engine == "dense" and m.cell.phase == "step" and m.ok and m.memory
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
        f"Dense networks are trained on crops. A training step of the dense network takes "
        f"{format_value(largest.memory, 'bytes')} for {largest.cell.batch} cubes of "
        f"{largest.cell.size} px. In proportion to the volume, whole events would take {needs} "
        f"(estimated, batch 4); this machine has {format_value(float(has), 'bytes')}."
    )


def _volume(measured: CellSummary) -> int:
    """Return the number of voxels of a three-dimensional batch, active or not."""
    return int(measured.cell.batch) * int(measured.cell.size) ** 3


def _published_accuracy(test: Evaluation) -> float:
    network = "sparse" if test.training.role == SPARSE else "dense"
    batches = (test.training.batch, 64)
    keys = [(network, test.test.size, batch) for batch in batches]
    return next((published.ACCURACY[key][0] for key in keys if key in published.ACCURACY), math.nan)


def classes_section(w: PageWriter) -> Section:
    """Return the section on the accuracy of each class in the main test."""
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
    measures = dict.fromkeys(("accuracy", "purity", "IoU"), format_fraction)
    section.items.append(
        w.table(
            "classes-all-tests",
            "Every test of whole events",
            "Accuracy is the fraction of the true voxels of a class that is predicted as this "
            "class, purity the fraction of the voxels predicted as a class that belongs to it.",
            tables.class_table(every),
            measures,
        )
    )
    return section


def _add_classes(w: PageWriter, section: Section, test: Evaluation, suffix: str) -> None:
    frame = tables.class_table([test])
    found = frame.dropna(subset=["accuracy"]).sort_values("accuracy")
    section.items.append(
        w.figure(
            f"classes{suffix}",
            "Accuracy, purity and IoU of each class",
            f"{test.title}: the accuracy is highest for {found.iloc[-1]['class']} "
            f"({found.iloc[-1]['accuracy']:.3f}) and lowest for {found.iloc[0]['class']} "
            f"({found.iloc[0]['accuracy']:.3f}).",
            frame,
            partial(plots.draw_classes, table=frame),
        )
    )
    shares = tables.confusion_table(test)
    section.items.append(
        w.figure(
            f"confusion{suffix}",
            "Confusion matrix",
            confusion_sentence(shares),
            shares,
            partial(plots.draw_confusion, shares=shares),
            size=(5.4, 4.2),
        )
    )


def confusion_sentence(shares: pd.DataFrame) -> str:
    """Return a sentence on the largest element outside the diagonal."""
    worst, name, other = -1.0, "", ""
    for row in shares.index:
        for column in shares.columns:
            value = float(shares.loc[row, column])
            if row != column and value > worst:
                worst, name, other = value, str(row), str(column)
    return (
        f"The largest confusion: {100 * worst:.1f} % of the {name} voxels are predicted as {other}."
    )


def michel_section(w: PageWriter) -> Section:
    """Return the section on Michel electrons, with displays of mistakes."""
    section = Section("Michel electrons")
    tests = [t for t in w.found.tests if t.training.classes == 5 and not t.training.crop]
    tests = [t for t in tests if t.training.dim == 3]
    if not tests:
        return section
    frame = tables.michel_table(tests)
    rich = next((t for t in tests if t.test.michel), None)
    sentence = "No held-out events with many Michel electrons were tested."
    if rich is not None:
        s = rich.michel_summary
        sentence = (
            f"In Michel-rich events, {s.found} of {s.true_clusters} Michel electrons are "
            f"identified, and {s.matched} of {s.candidates} candidates are Michel electrons."
        )
    section.items.append(
        w.table(
            "michel",
            "Identification and clusters",
            f"{sentence} As in the 2018 study, clusters are found with DBSCAN, and candidates are "
            "clusters at the ends of predicted MIP tracks.",
            frame,
            {name.replace("_", " "): format_fraction for name in published.MICHEL},
        )
    )
    if rich is None:
        return section
    wrong = displays.find_mistakes(rich.events, rich.michels)
    for rank, number in enumerate(wrong, 1):
        event, found = rich.events[number], rich.michels[number]
        differ = int((event.truth != event.predicted).sum())
        section.items.append(
            w.figure(
                f"mistake-{rank}",
                f"Mistake {rank}: true beside predicted classes",
                f"{found.found} of {found.true_clusters} Michel electrons are identified, with "
                f"{len(found.candidates)} candidates; {differ:,} of {len(event.truth):,} voxels "
                "have a wrong class (grey halo).",
                displays.voxel_table(event),
                partial(displays.draw_truth_and_prediction, event=event),
                size=(10.8, 5.0),
                panels=2,
            )
        )
    if wrong:
        event = rich.events[wrong[0]]
        section.items.append(
            RotatableEvent(
                "Mistake 1 in three dimensions: colours are predicted classes, crosses mark voxels "
                "with a wrong class.",
                displays.rotatable(event, "mistake"),
            )
        )
    return section


def two_classes_section(w: PageWriter) -> Section:
    """Return the section on the classification into tracks and showers."""
    section = Section("Tracks and showers")
    for test in (t for t in w.found.tests if t.training.classes == 2):
        _add_classes(w, section, test, "-2-classes")
        section.paragraphs.append(
            f"{test.title}: nonzero accuracy {test.accuracy.mean:.4f}, standard deviation over "
            f"events {test.accuracy.std:.4f}."
        )
    return section
