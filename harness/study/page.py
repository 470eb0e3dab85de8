"""The page of a study: the figures and tables of the 2018 study, from this machine."""

from __future__ import annotations

from pathlib import Path

from harness.report.html import environment, save
from harness.report.provenance import facts
from harness.spec.metrics import format_duration
from harness.study.accuracy_sections import (
    classes_section,
    main_test,
    michel_section,
    sizes_section,
    two_classes_section,
)
from harness.study.cost_sections import cost_section, planes_section, scaling_section
from harness.study.definition import Study
from harness.study.document import PageWriter
from harness.study.event_section import events_section
from harness.study.learning_section import learning_section
from harness.study.results import Results, read_results

SECTIONS = (
    events_section,
    learning_section,
    cost_section,
    scaling_section,
    sizes_section,
    classes_section,
    michel_section,
    two_classes_section,
    planes_section,
)
"""Sections in the order of the talk on the 2018 study."""

_EARLY_SECONDS = 1200.0


def write_study_page(study: Study) -> Path:
    """Write ``index.html`` and the figures beside it from the folder of a study.

    Parameters
    ----------
    study : Study
        A study, complete or not.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    from plotly.offline import get_plotlyjs

    found = read_results(study)
    writer = PageWriter(found)
    sections = [section for make in SECTIONS if (section := make(writer)).items]
    also = "".join(f" --also {name}" for name in study.also)
    minutes = f" --minutes {study.minutes:g}" if study.minutes else ""
    text = (
        environment("harness.study")
        .get_template("study.html.j2")
        .render(
            scale=found.scale,
            claim=claim(found),
            lead=lead(found),
            sections=sections,
            missing=missing(found),
            plotly=get_plotlyjs(),
            command=f"python -m harness study --out DIR --scale {study.scale} "
            f"--backend {study.backend}{also} --precision {study.precision}{minutes}",
            facts=facts(found.frame),
        )
    )
    return save(text, study.out / "index.html", "--out")


def claim(found: Results) -> str:
    """Return the main result in one line."""
    test = main_test(found)
    if test is None:
        return "This study contains no test of a trained network yet"
    return (
        f"{found.study.backend} reaches a nonzero accuracy of {test.accuracy.mean:.3f} on held-out "
        f"events of {test.training.crop or test.test.size} px"
    )


def lead(found: Results) -> str:
    """Return the conditions of the main result."""
    test = main_test(found)
    if test is None:
        return found.scale.describe().splitlines()[0]
    tested = f"{len(test.accuracy.events)} events that are not in the training set"
    curve = next((c for c in found.curves if c.training == test.training), None)
    if curve is None:
        return f"Tested on {tested}."
    text = (
        f"Tested on {tested}, after {len(curve.steps):,} iterations on {curve.events:,} events "
        f"(batch {test.training.batch}) in {format_duration(curve.seconds)} of training."
    )
    early = curve.evaluation_at(_EARLY_SECONDS)
    if early is not None and curve.seconds > _EARLY_SECONDS:
        text += (
            f" After {_EARLY_SECONDS / 60:.0f} minutes (iteration {int(early['step']):,}), the "
            f"accuracy on the first {int(early['events'])} of them was {early['accuracy']:.3f}."
        )
    return text


def missing(found: Results) -> list[str]:
    """Return the parts of the scale without a result, with the reason."""
    trained = {c.training.name for c in found.curves}
    lines = [
        f"The training {training.name}: there are no steps of {found.study.backend_of(training)}."
        for training in found.scale.trainings
        if training.name not in trained
    ]
    lines += [
        f"{m.engine}, {m.where}: {m.side.outcome}{f' ({m.side.reason})' if m.side.reason else ''}"
        for m in found.cells
        if not m.ok
    ]
    return [*lines, *found.problems]
