"""The definition of a study: its scale, its engines, and where its folder keeps each part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from backends.registry import names
from harness.errors import BadInput
from harness.results.validation import fields_problem
from harness.spec.fields import Field
from harness.study.cells import Engines
from harness.study.plan import Plan
from harness.study.scales import AS_PUBLISHED, DENSE, HeldOut, Scale, Training, find_scale
from harness.study.views import View
from harness.terminal import program

DEFINITION = "study.json"


@dataclass(frozen=True)
class Study:
    """A scale on an engine, in a folder.

    Attributes
    ----------
    out : Path
        Folder of all files of the study.
    scale : str
        Name of a scale, as in ``harness.study.scales.SCALES``.
    backend : str
        Sparse engine that is trained.
    also : tuple of str
        Further sparse engines whose costs are measured.
    precision : str
        As for ``harness.spec.cell.Cell``.
    minutes : float
        Duration of the first training; 0 for the duration in the scale.
    """

    out: Path
    scale: str
    backend: str = "sscn"
    also: tuple[str, ...] = ()
    precision: str = "fp32"
    minutes: Annotated[float, Field("", least=0)] = 0.0

    @property
    def resolved_scale(self) -> Scale:
        """The scale, with the requested duration of the first training."""
        scale = find_scale(self.scale)
        return scale.with_minutes(self.minutes) if self.minutes else scale

    @property
    def records(self) -> Path:
        """File of the records of trainings and cells."""
        return self.out / "records.jsonl"

    @property
    def engines(self) -> Engines:
        """Engines whose costs are measured."""
        sparse = tuple(dict.fromkeys((self.backend, *self.also)))
        dense = tuple(name for name in (DENSE, AS_PUBLISHED) if name in names())
        return Engines(sparse, dense)

    def training_folder(self, training: Training) -> Path:
        """Return the folder of a training and its predictions."""
        return self.out / "training" / training.name.replace(" ", "-")

    def mixture_folder(self, size: int) -> Path:
        """Return the folder of the training events of a size."""
        return self.out / "events" / f"mixture-{size}px"

    @property
    def michel_folder(self) -> Path:
        """Folder of the held-out events with many stopping muons."""
        return self.out / "events" / "michel-test-192px"

    def backend_of(self, training: Training) -> str:
        """Return the engine of a training."""
        return training.role if training.role in (DENSE, AS_PUBLISHED) else self.backend

    def view(self, training: Training, size: int, source: Path | str) -> View:
        """Return a view of events with the crop, plane and classes of a training."""
        return View(str(source), size, training.classes, training.dim, training.crop)

    def test_view(self, training: Training, test: HeldOut) -> View:
        """Return a view of the held-out events of a test."""
        return self.view(training, test.size, self.michel_folder if test.michel else "sample")

    def plan(self, training: Training) -> Plan:
        """Return the plan of a training: its engine, its events and its settings."""
        scale = self.resolved_scale
        return Plan(
            name=training.name,
            backend=self.backend_of(training),
            events=self.view(training, training.size, self.mixture_folder(training.size)),
            held_out=self.view(training, training.size, "sample"),
            device=scale.device,
            precision=self.precision,
            model=replace(scale.model, classes=training.classes),
            **training.settings(),
        )


def predictions_name(test: HeldOut) -> str:
    """Return the stem of the file with the predictions of a test."""
    return f"{'michel' if test.michel else 'sample'}-{test.size}px"


def write_definition(study: Study) -> None:
    """Write the definition of a study into its folder.

    A study may be continued with other engines in ``Study.also`` and with other minutes.

    Raises
    ------
    BadInput
        If the folder holds a study of another scale, engine or precision, or cannot be written.
    """
    path = study.out / DEFINITION
    if path.exists():
        present = read_study(study.out)
        if (present.scale, present.backend, present.precision) != (
            study.scale,
            study.backend,
            study.precision,
        ):
            raise BadInput(f"{study.out} holds a study with other options; give another --out")
    values = asdict(study) | {"out": "", "also": list(study.also)}
    try:
        study.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another --out") from None


def read_study(out: Path) -> Study:
    """Read the definition of the study in a folder.

    Raises
    ------
    BadInput
        If the folder holds no study, or its definition is damaged.
    """
    path = out / DEFINITION
    try:
        text = path.read_text()
    except (OSError, ValueError):
        raise BadInput(
            f"{out} holds no study; make one with: {program()} study --out {out}"
        ) from None
    damaged = BadInput(
        f"{path} is damaged; remove it and repeat the command that started the study"
    )
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged from None
    if fields_problem(Study, values | {"out": ""} if isinstance(values, dict) else values):
        raise damaged
    find_scale(values["scale"])
    return Study(**values | {"out": out, "also": tuple(values.get("also", ()))})
