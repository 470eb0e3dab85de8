"""What a worker is told: the cell, where its events are, and how to measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from harness.errors import BadInput
from harness.run.sampling import StopRule
from harness.spec.cell import Cell


@dataclass(frozen=True)
class Job:
    """One cell with everything that a worker needs to measure it.

    Attributes
    ----------
    cell : Cell
        What to measure.
    events : str
        ``sample``, or the path of a file of events.
    rule : StopRule
        When to stop sampling.
    warm_up : float
        Seconds after which a warm-up ends although it has not settled.
    threads : int
        Threads of the engine on the processor; 0 for one a processor core that is allowed.
    processors : tuple of int
        Processors that the worker may use; empty for all that it was given.
    memory_bytes : int
        Bound of the worker's own data on the CPU; 0 for none.
    truth : str
        Folder that keeps float64 truths between workers; empty to compute it anew.
    check : bool
        Whether to compare with the truth; only the search for memory limits goes without.
    """

    cell: Cell
    events: str = "sample"
    rule: StopRule = field(default_factory=StopRule)
    warm_up: float = 5.0
    threads: int = 0
    processors: tuple[int, ...] = ()
    memory_bytes: int = 0
    truth: str = ""
    check: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return asdict(self) | {"cell": self.cell.to_json(), "processors": list(self.processors)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read what ``to_json`` wrote, or a bare cell.

        Raises
        ------
        BadInput
            If a field is missing or unknown.
        """
        if isinstance(values, Mapping) and "cell" not in values:
            return cls(Cell.from_json(values))
        if not isinstance(values, Mapping):
            raise BadInput("a job must be a JSON object: a cell, or {'cell': …}")
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise BadInput(f"a job has no field {unknown[0]!r}; give a cell or {{'cell': …}}")
        kept = dict(values) | {"cell": Cell.from_json(values["cell"])}
        try:
            if "rule" in kept:
                kept["rule"] = StopRule(**kept["rule"])
            kept["processors"] = tuple(kept.get("processors", ()))
            return cls(**kept)
        except TypeError as error:
            raise BadInput(f"this job is not usable: {error}") from None
