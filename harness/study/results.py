"""Reading of the folder of a study: learning curves, predictions, and costs of cells."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from harness.accuracy.classification import Accuracy, measure_accuracy
from harness.accuracy.michel import EventMichels, MichelSummary, reconstruct, summarize_michels
from harness.errors import BadInput
from harness.results import store
from harness.results.summary import CellSummary, summarize
from harness.study.definition import Study, predictions_name
from harness.study.predictions import Predicted, load_predictions
from harness.study.scales import HeldOut, Scale, Training
from harness.study.training_tables import HELD_OUT_COLUMNS, HELD_OUT_FILE, STEP_COLUMNS, STEPS_FILE

SMOOTHED = 100
"""Steps of the moving mean in the figures of learning curves."""


@dataclass(frozen=True)
class Curve:
    """The learning curve of a training.

    Attributes
    ----------
    training : Training
        The training.
    backend : str
        Its engine.
    steps, held_out : DataFrame
        The CSV files of the training.
    """

    training: Training
    backend: str
    steps: pd.DataFrame
    held_out: pd.DataFrame

    @cached_property
    def smooth(self) -> pd.DataFrame:
        """Moving means over ``SMOOTHED`` steps, over fewer at the start."""
        return self.steps.rolling(SMOOTHED, min_periods=1).mean()

    @property
    def events(self) -> int:
        """Number of training events so far, with repetitions."""
        return int(self.steps["events"].iloc[-1])

    @property
    def seconds(self) -> float:
        """Training time so far in seconds."""
        return float(self.steps["seconds"].iloc[-1])

    @property
    def has_energy(self) -> bool:
        """Whether the energy was measured."""
        return bool(self.steps["joules"].notna().all())

    def evaluation_at(self, seconds: float) -> pd.Series | None:
        """Return the last evaluation within a training time in seconds; None if there is none."""
        early = self.held_out[self.held_out["seconds"] <= seconds]
        return None if early.empty else early.iloc[-1]


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a trained network for the held-out events of a test."""

    training: Training
    test: HeldOut
    events: list[Predicted]

    @cached_property
    def accuracy(self) -> Accuracy:
        """Accuracy of the classification of the voxels."""
        return measure_accuracy(
            [e.truth for e in self.events],
            [e.predicted for e in self.events],
            self.training.classes,
        )

    @cached_property
    def michels(self) -> list[EventMichels]:
        """Michel electrons of every event."""
        return [
            reconstruct(e.event.voxels, e.event.energies, e.truth, e.predicted) for e in self.events
        ]

    @cached_property
    def michel_summary(self) -> MichelSummary:
        """Efficiencies and purities of the Michel electrons."""
        return summarize_michels(self.michels)

    @property
    def title(self) -> str:
        """Name of the training and description of the events."""
        kind = "Michel-rich" if self.test.michel else "sample"
        size = self.training.crop or self.test.size
        return f"{self.training.name} on {len(self.accuracy.events)} {kind} events of {size} px"


@dataclass(frozen=True)
class Results:
    """Contents of the folder of a study.

    Attributes
    ----------
    study : Study
        The study.
    curves : list of Curve
        Trainings with at least one step.
    tests : list of Evaluation
        Tests with predictions.
    cells : list of CellSummary
        CellSummary cells.
    frame : DataFrame
        Records, as ``harness.results.store.read`` returns them.
    problems : list of str
        Sentences on files that could not be used.
    """

    study: Study
    curves: list[Curve]
    tests: list[Evaluation]
    cells: list[CellSummary]
    frame: pd.DataFrame
    problems: list[str] = field(default_factory=list)

    @property
    def scale(self) -> Scale:
        """Scale of the study."""
        return self.study.resolved_scale

    def of(self, suite: str) -> list[CellSummary]:
        """Return the measured cells of a suite."""
        return [cell for cell in self.cells if cell.cell.suite == suite]


def read_results(study: Study) -> Results:
    """Read the folder of a study, complete or not; unusable files are left out and reported."""
    scale = study.resolved_scale
    curves, tests, problems = [], [], []
    for training in scale.trainings:
        folder = study.training_folder(training)
        try:
            curve = _read_curve(folder, training, study.backend_of(training))
        except BadInput as error:
            problems.append(str(error))
        else:
            curves += [curve] if curve else []
        for test in training.tests:
            path = folder / f"{predictions_name(test)}.npz"
            if not path.exists():
                continue
            try:
                events = study.test_view(training, test).open()[: test.events]
                predicted = list(load_predictions(path, events, training.classes))
            except BadInput as error:
                problems.append(str(error))
            else:
                tests.append(Evaluation(training, test, predicted))
    frame = store.read([study.records] if study.records.exists() else [])
    measured = summarize(frame[frame["cell.suite"].str.startswith("study-")]) if len(frame) else []
    problems = [problem.replace(f"{study.out}/", "") for problem in problems]
    return Results(study, curves, tests, measured, frame, problems)


def _read_curve(folder: Path, training: Training, backend: str) -> Curve | None:
    """Read the CSV files of a training; return None if it has no step."""
    if not (folder / STEPS_FILE).exists():
        return None
    steps = _read_rows(folder / STEPS_FILE, STEP_COLUMNS)
    held_out = _read_rows(folder / HELD_OUT_FILE, HELD_OUT_COLUMNS)
    return Curve(training, backend, steps, held_out) if len(steps) else None


def _read_rows(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read the complete rows of a CSV file; the last row of a killed training may be incomplete.

    Raises
    ------
    BadInput
        If the file is damaged.
    """
    damaged = BadInput(f"{path} is damaged; remove its folder and repeat the study's command")
    try:
        text = path.read_bytes().decode()
        complete = text[: text.rfind("\n") + 1]
        table = pd.read_csv(io.StringIO(complete or ",".join(columns)))
    except (OSError, ValueError):  # pandas' parser errors are ValueErrors
        raise damaged from None
    if tuple(table.columns[: len(columns)]) != columns:
        raise damaged
    numbers = table.select_dtypes("number").columns
    empty = [name for name in table.columns if table[name].isna().all()]
    if len({*numbers, *empty}) != len(table.columns):
        raise damaged
    always = [name for name in ("step", "events", "seconds") if len(table)]
    if not all(np.isfinite(table[name].astype(float)).all() for name in always):
        raise damaged
    return table
