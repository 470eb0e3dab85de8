"""Settings of a training, and plans: everything that determines its weights, as JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self

from harness.errors import BadInput
from harness.results.validation import fields_problem
from harness.spec.cell import Cell, EventSpec, ModelSpec
from harness.spec.fields import Field
from harness.study.views import View
from harness.terminal import program

PLAN_FILE = "plan.json"

Tests = Mapping[str, tuple[View, int]]
"""Name of a test -> its events, and the number of them that is predicted."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings that a training has in every study, on every engine.

    Attributes
    ----------
    batch : int
        Events per step.
    steps : int
        Maximum number of steps.
    seconds : float
        Maximum training time in seconds, without evaluations and checkpoints; 0 for no limit.
    evaluate_every : int
        Steps between evaluations; 0 for none.
    held_out_events : int
        Number of events in each evaluation; 0 for all.
    optimiser : str
        One of ``harness.study.optimiser.OPTIMISERS``; the 2018 study used Adam.
    learning_rate : float
        Maximum learning rate; 1e-3 throughout in the 2018 study.
    warm_up : int
        Steps in which the learning rate rises linearly to its maximum; afterwards it falls with
        the inverse square root of the step (arXiv:1706.03762, equation 3). 0 for a constant rate.
    cool_down : int
        Steps at the end over which the learning rate also falls linearly to zero.
    average : float
        Decay of ``harness.study.average.WeightAverage``; 0 to evaluate the latest weights.
    """

    batch: Annotated[int, Field("", least=1)]
    steps: Annotated[int, Field("", least=1)]
    seconds: Annotated[float, Field("", least=0)] = 0.0
    evaluate_every: Annotated[int, Field("", least=0)] = 0
    held_out_events: Annotated[int, Field("", least=0)] = 0
    optimiser: str = "adam"
    learning_rate: Annotated[float, Field("", least=0)] = 1e-3
    warm_up: Annotated[int, Field("", least=0)] = 0
    cool_down: Annotated[int, Field("", least=0)] = 0
    average: Annotated[float, Field("", least=0, most=1)] = 0.998

    def settings(self) -> dict[str, Any]:
        """Return the settings by name, without the fields of subclasses."""
        return {entry.name: getattr(self, entry.name) for entry in fields(TrainingSettings)}


@dataclass(frozen=True)
class Plan(TrainingSettings):
    """One training on one engine, with the files of its events.

    A ``harness.study.scales.Training`` is independent of the engine and the folder; a plan is that
    training in one study, in the form that the training process reads.

    Attributes
    ----------
    name : str
        Name of the training.
    backend : str
        Name of the engine.
    events : View
        Training events.
    held_out : View
        Events of the evaluations; each uses the first ``held_out_events`` of them.
    device, precision, options, model
        As for ``harness.spec.cell.Cell``.
    seed : int
        Seed of the initial weights and of the order and orientation of the events: two engines
        with the same seed start from the same weights and see the same batches in the same order.

    Raises
    ------
    BadInput
        If the batch or the steps are below 1, or the network and the events do not fit together.
    """

    name: str
    backend: str
    events: View
    held_out: View
    device: str = "cpu"
    precision: str = "fp32"
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    model: ModelSpec = field(default_factory=ModelSpec)
    seed: Annotated[int, Field("", least=0, most=2**63 - 1)] = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.steps < 1:
            raise BadInput(f"{self.name}: a training needs a batch and steps of at least 1")
        if not self.model.classes == self.events.classes == self.held_out.classes:
            raise BadInput(f"{self.name}: the network and its events must have the same classes")
        if self.events.dim != self.held_out.dim:
            raise BadInput(
                f"{self.name}: training and held-out events must have the same dimension"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step; the first step is 1."""
        rate = self.learning_rate
        if self.warm_up:
            falling: float = (self.warm_up / step) ** 0.5
            rate *= min(step / self.warm_up, falling)
        if self.cool_down:
            rate *= min((self.steps + 1 - step) / self.cool_down, 1.0)
        return rate

    def without_folders(self) -> Self:
        """Return the plan without the folders of its events, which change with a move."""
        return replace(
            self, events=self.events.without_folder(), held_out=self.held_out.without_folder()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self) | {
            "options": dict(self.options),
            "events": self.events.to_json(),
            "held_out": self.held_out.to_json(),
            "model": self.model.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the plan that ``to_json`` has written.

        Raises
        ------
        BadInput
            If a field is missing, unknown or of another type.
        """
        wrong = fields_problem(cls, values)
        if wrong:
            raise BadInput(f"this plan is not usable: {wrong}")
        parts = dict(values)
        parts["events"] = View(**parts["events"])
        parts["held_out"] = View(**parts["held_out"])
        parts["model"] = ModelSpec(**parts["model"])
        return cls(**parts)

    def cell(self, sha256: str) -> Cell:
        """Return the cell of the record of this training.

        Parameters
        ----------
        sha256 : str
            Hash of the training events.
        """
        return Cell(
            suite="training",
            backend=self.backend,
            options=self.options,
            device=self.device,
            precision=self.precision,
            dim=self.events.dim,
            size=self.events.image_size,
            batch=self.batch,
            phase="step",
            map="cold",
            model=self.model,
            events=EventSpec(Path(self.events.source).name, sha256, self.seed),
        )


def write_plan(folder: Path, plan: Plan, tests: Tests) -> None:
    """Write the plan of a training and its tests into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "plan": plan.to_json(),
        "tests": {name: {"view": view.to_json(), "events": n} for name, (view, n) in tests.items()},
    }
    (folder / PLAN_FILE).write_text(json.dumps(values, indent=1) + "\n")


def read_plan(folder: Path) -> tuple[Plan, dict[str, tuple[View, int]]]:
    """Read the files of ``write_plan``.

    Raises
    ------
    BadInput
        If the folder holds no plan, or a damaged one.
    """
    path = folder / PLAN_FILE
    try:
        text = path.read_text()
    except (OSError, ValueError):
        raise BadInput(
            f"{folder} holds no {PLAN_FILE}; start with: {program()} study --out …"
        ) from None
    try:
        values = json.loads(text)
        plan = Plan.from_json(values["plan"])
        tests = {name: _test(test) for name, test in values["tests"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadInput(f"{path} is damaged; remove it and repeat the study's command") from None
    return plan, tests


def _test(values: Mapping[str, Any]) -> tuple[View, int]:
    """Return the events of a test, and the number of them that is predicted."""
    events = values["events"]
    wrong = fields_problem(View, values["view"])
    if wrong or type(events) is not int or events < 0:
        raise BadInput(wrong or f"{events!r} is no number of events")
    return View(**values["view"]), events
