"""Runs a study: events, trainings, costs and the page. Complete parts are not repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from backends.registry import probe_all
from harness.errors import BadInput
from harness.events.simulate import check_packages
from harness.run.plan import Availability
from harness.study.cells import cost_jobs
from harness.study.costs import measure_costs
from harness.study.definition import Study, predictions_name, write_definition
from harness.study.mixture import MIXTURE_SEED, EventFolder, simulate_folders
from harness.study.page import write_study_page
from harness.study.scales import Scale, Training, find_scale
from harness.study.training_process import run_training

MICHEL_SEED = 900_000
"""Seed of the Michel-rich test events, apart from those of the training and the packed sample."""


def run_study(study: Study, console: Console) -> Path:
    """Run the missing parts of a study, and write its page.

    Parameters
    ----------
    study : Study
        The study.
    console : Console
        Destination of messages and progress.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        If the engine cannot run here, if events are missing and the packages of the simulation as
        well, or if the folder holds another study.
    """
    scale = study.resolved_scale
    found = _probe(study)
    if any(folder.missing() for folder in _event_folders(study, scale)):
        check_packages()
    console.print(scale.describe(), highlight=False, soft_wrap=True)
    write_definition(study)
    simulate_folders(_event_folders(study, scale), console)
    for training in scale.trainings:
        _train(study, training, found, console)
    jobs = cost_jobs(
        scale.costs,
        study.engines,
        scale.device,
        study.precision,
        scale.model,
        study.out / "events",
    )
    measure_costs(jobs, study.records, found, console, timeout=scale.costs.timeout)
    return write_study_page(study)


def _probe(study: Study) -> Mapping[str, Availability]:
    """Return the availability of the engines, if the engine of the study can run here."""
    engines = (*study.engines.sparse, *study.engines.dense)
    found = {answer.name: answer for answer in probe_all(engines)}
    can = found[study.backend].capabilities
    if can is None:
        raise BadInput(f"{study.backend} cannot run here: {found[study.backend].reason}")
    device = find_scale(study.scale).device
    if device not in can.devices:
        raise BadInput(
            f"the scale {study.scale} needs {device}, where {study.backend} does not run here; "
            "choose another scale"
        )
    return found


def _event_folders(study: Study, scale: Scale) -> list[EventFolder]:
    """Return the folders of simulated events."""
    folders = [
        EventFolder(study.mixture_folder(size), size, count, MIXTURE_SEED + 1000 * size)
        for size, count in scale.mixtures
    ]
    michel = EventFolder(study.michel_folder, 192, scale.michel_events, MICHEL_SEED, ("michel",))
    return [*folders, michel]


def _train(
    study: Study, training: Training, found: Mapping[str, Availability], console: Console
) -> None:
    """Run a training with its tests, unless its engine cannot run here."""
    backend = study.backend_of(training)
    answer = found.get(backend)
    if answer is None or answer.capabilities is None:
        reason = answer.reason if answer else "no engine has this name"
        console.print(f"{training.name}: {backend} cannot run here: {reason}", highlight=False)
        return
    tests = {
        predictions_name(test): (study.test_view(training, test), test.events)
        for test in training.tests
    }
    folder = study.training_folder(training)
    run_training(folder, study.plan(training), tests, study.records, console)
