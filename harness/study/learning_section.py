"""The section of the page on trainings: their extent, and their learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.spec.metrics import format_value
from harness.study import plots, tables
from harness.study.document import Figure, PageWriter, Section, Table
from harness.study.results import SMOOTHED, Curve, Results


def learning_section(w: PageWriter) -> Section:
    """Return the section on all trainings."""
    section = Section("Trainings")
    if not w.found.curves:
        return section
    section.items.append(_trainings_table(w))
    plain = [c for c in w.found.curves if c.training.dim == 3 and c.training.classes == 5]
    for key, words, curves in (
        ("whole", "whole events", [c for c in plain if not c.training.crop]),
        ("crops", "crops", [c for c in plain if c.training.crop]),
    ):
        if curves:
            section.items += _curve_figures(w, key, words, curves)
    if not any(c.has_energy for c in w.found.curves):
        section.paragraphs.append(
            "This machine has no readable energy counter: the energy is unknown."
        )
    twins = twins_sentence(w.found)
    if twins:
        section.paragraphs.append(twins)
    return section


def _trainings_table(w: PageWriter) -> Table:
    frame = tables.training_table(w.found.curves)
    formats = {"final accuracy": "{:.3f}".format, "learning rate": "{:g}".format}
    return w.table(
        "trainings",
        "All trainings",
        "Events are counted with repetitions. The time excludes evaluations and checkpoints; the "
        f"final accuracy is the mean over the last {SMOOTHED} steps, on training events.",
        frame,
        formats,
    )


def _curve_figures(w: PageWriter, key: str, words: str, curves: Sequence[Curve]) -> list[Figure]:
    """Return the figures of accuracy and loss of some trainings."""
    counted = [c for c in curves if c.has_energy]
    wanted = [
        ("step", "accuracy", f"Accuracy against iterations, {words}", _ends(curves)),
        ("step", "loss", f"Loss against iterations, {words}", _SMOOTHING),
        ("seconds", "accuracy", f"Accuracy against training time, {words}", _step_times(curves)),
    ]
    if counted:
        title = f"Accuracy against energy, {words}"
        wanted.append(("joules", "accuracy", title, _energies(counted)))
    return [
        w.figure(
            f"{quantity}-against-{along}-{key}",
            title,
            sentence,
            plots.curve_table(curves if along != "joules" else counted),
            partial(
                plots.draw_curves,
                curves=curves if along != "joules" else counted,
                along=along,
                quantity=quantity,
            ),
        )
        for along, quantity, title, sentence in wanted
    ]


_SMOOTHING = f"Lines are means over the last {SMOOTHED} steps. The CSV file contains every step."


def _ends(curves: Sequence[Curve]) -> str:
    ends = ", ".join(f"{c.training.name} {c.smooth['accuracy'].iloc[-1]:.3f}" for c in curves)
    return f"Means over the last {SMOOTHED} steps of the trainings: {ends}."


def _step_times(curves: Sequence[Curve]) -> str:
    each = ", ".join(
        f"{c.training.name} {format_value(float(c.steps['step_seconds'].median()), 's')}"
        for c in curves
    )
    return f"Median time per step: {each}."


def _energies(curves: Sequence[Curve]) -> str:
    each = ", ".join(
        f"{c.training.name} {c.steps['joules'].iloc[-1] / 1000:.3g} kJ" for c in curves
    )
    return f"Energy of the trainings: {each}."


def twins_sentence(found: Results) -> str:
    """Return a comparison of dense and sparse on the same held-out crops."""
    tested = {
        t.training.role: t
        for t in found.tests
        if t.training.crop and t.training.dim == 3 and not t.test.michel
    }
    if not {"sparse", "dense"} <= set(tested):
        return ""
    sparse, dense = tested["sparse"].accuracy, tested["dense"].accuracy
    return (
        f"Trained from the same weights on the same batches, the sparse network reaches an "
        f"accuracy of {sparse.mean:.4f} and the dense network of the same function "
        f"{dense.mean:.4f} on {len(dense.events)} held-out crops, a difference of "
        f"{100 * (sparse.mean - dense.mean):+.2f} percentage points."
    )
