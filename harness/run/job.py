"""Jobs of workers: a cell, the location of its events, and how to measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from harness.errors import BadInput
from harness.run.sampling import StopRule
from harness.spec.cell import Cell


@dataclass(frozen=True)
class Job:
    """One cell with everything that a worker needs for its measurement.

    Attributes
    ----------
    cell : Cell
        What to measure.
    events : str
        ``sample``, or the path of a file of events.
    rule : StopRule
        When to stop sampling.
    warm_up : float
        Longest duration of the warm-up, in seconds.
    threads : int
        Threads of the engine on the processor; 0 for one per processor that is allowed.
    processors : tuple of int
        Processors that the worker may use; empty for all of its parent's.
    memory_bytes : int
        Limit of the worker's own data on the CPU, in bytes; 0 for none.
    references : str
        Folder of float64 references shared by the workers of a run; empty for none.
    check : bool
        Whether to compare with the reference; the search for the largest batch does not.
    weights : str
        Path of the file of weights; empty for random weights.
    """

    cell: Cell
    events: str = "sample"
    rule: StopRule = field(default_factory=StopRule)
    warm_up: float = 5.0
    threads: int = 0
    processors: tuple[int, ...] = ()
    memory_bytes: int = 0
    references: str = ""
    check: bool = True
    weights: str = ""

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
