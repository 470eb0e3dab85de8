"""What a training is: all that determines its weights, as a value that can be written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from harness.errors import BadInput
from harness.spec.cell import Cell, EventSpec, ModelSpec
from harness.study.views import View


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes
    ----------
    name : str
        What its folder and its curve are called.
    backend : str
        The engine.
    events : View
        What it learns from.
    held_out : View
        What it is evaluated on as it goes.
    batch : int
        Events a step.
    steps : int
        Most steps.
    seconds : float
        Most training time, which leaves evaluations and checkpoints out; 0 for no limit.
    evaluate_every : int
        Steps between evaluations; 0 for none.
    held_out_events : int
        Events of each evaluation, the first ones of `held_out`; 0 for all.
    device, precision, options, model
        As for `harness.spec.cell.Cell`.
    optimiser : str
        One of `harness.study.optimiser.OPTIMISERS`; the study's is Adam.
    learning_rate : float
        Its highest; the study's is 1e-3 throughout.
    warm_up : int
        Steps in which the rate rises to the highest, from which it falls with the inverse root of
        the step (arXiv:1706.03762, equation 3); 0 for a constant rate.
    average : float
        As the decay of `harness.study.average.WeightAverage`; 0 judges the latest weights.
    seed : int
        Of the initial weights and of the order and orientation of the events: two engines with
        the same seed start from the same weights and see the same batches in the same order.
    """

    name: str
    backend: str
    events: View
    held_out: View
    batch: int
    steps: int
    seconds: float = 0.0
    evaluate_every: int = 0
    held_out_events: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    model: ModelSpec = field(default_factory=ModelSpec)
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    warm_up: int = 0
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.steps < 1:
            raise BadInput(f"{self.name}: a training needs a batch and steps of at least 1")
        if (
            self.model.classes != self.events.classes
            or self.events.classes != self.held_out.classes
        ):
            raise BadInput(f"{self.name}: the network and its events must have the same classes")
        if self.events.dim != self.held_out.dim:
            raise BadInput(
                f"{self.name}: training and held-out events must have the same dimension"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first of which is 1."""
        if not self.warm_up:
            return self.learning_rate
        return self.learning_rate * min(step / self.warm_up, (self.warm_up / step) ** 0.5)

    def anywhere(self) -> Self:
        """Return the plan without the folders of its events: what stays when a study is moved."""
        return replace(self, events=self.events.anywhere(), held_out=self.held_out.anywhere())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a plan from what `to_json` returned."""
        kept = dict(values)
        kept["events"] = View(**kept["events"])
        kept["held_out"] = View(**kept["held_out"])
        kept["model"] = ModelSpec(**kept["model"])
        return cls(**kept)

    def cell(self, sha256: str) -> Cell:
        """Return the cell that the record of this training carries.

        Parameters
        ----------
        sha256 : str
            Identity of the training events.
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
