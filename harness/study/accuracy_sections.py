"""The parts of the study's page on what the networks learn, and how well they classify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd

from harness.results.summary import Measured
from harness.spec.metrics import format_value
from harness.study import displays, figures, published, results
from harness.study.cells import DENSE
from harness.study.results import Curve, Evaluated, Results
from harness.study.scales import DENSE as DENSE_ROLE
from harness.study.scales import SPARSE
from harness.study.sections import ACCURACIES, SIZES, Section, Turned, Writer, share


def main_test(found: Results) -> Evaluated | None:
    """Return the test of the main training on sample events like those it learnt from."""
    fit = (
        t
        for t in found.tests
        if t.training.role == SPARSE and t.test.size == t.training.size and not t.test.michel
    )
    return next(fit, None)


def learning_section(w: Writer) -> Section:
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
    for sentence in (recipes_sentence(w.found), twins_sentence(w.found)):
        if sentence:
            section.paragraphs.append(sentence)
    return section


def _is_plain(curve: Curve) -> bool:
    return curve.training.dim == 3 and curve.training.classes == 5


def _time_sentence(curves: Sequence[Curve]) -> str:
    each = ", ".join(
        f"{c.training.name} {format_value(float(c.steps['step_seconds'].median()), 's')}"
        for c in curves
    )
    return f"A step takes, in the median: {each}."


def recipes_sentence(found: Results) -> str:
    """State what every network learnt from, how long, and with which optimiser."""
    if not found.curves:
        return ""
    recipes = (
        f"{c.training.name}: {len(c.steps):,} steps of {c.training.batch} events "
        f"({c.events:,} in all) in "
        f"{format_value(float(c.steps['seconds'].iloc[-1]), 's')}, "
        f"{c.training.optimiser.title()} at {c.training.learning_rate:g}"
        for c in found.curves
    )
    return "Trainings: " + "; ".join(recipes) + "."


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


def sizes_section(w: Writer) -> Section:
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
            ACCURACIES,
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


def classes_section(w: Writer) -> Section:
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


def _add_classes(w: Writer, section: Section, test: Evaluated, suffix: str) -> None:
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


def michel_section(w: Writer) -> Section:
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
                "differ (grey behind them).",
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


def two_classes_section(w: Writer) -> Section:
    """Track against shower."""
    section = Section("Track against shower")
    for test in (t for t in w.found.tests if t.training.classes == 2):
        _add_classes(w, section, test, "-2-classes")
        section.paragraphs.append(
            f"{test.title}: nonzero accuracy {test.accuracy.mean:.4f}, spread over events "
            f"{test.accuracy.std:.4f}."
        )
    return section
