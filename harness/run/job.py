"""Jobs of workers: a cell, the location of its events, and how to measure it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from harness.errors import BadInput
from harness.results.validation import fields_problem
from harness.run.sampling import StopRule
from harness.spec.cell import Cell
from harness.spec.fields import Field


@dataclass(frozen=True)
class Job:
    """One cell with everything that a worker needs for its measurement.

    Attributes
    ----------
    cell : Cell
        The cell to measure.
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
        ``trained`` or the path of a file of weights; empty for random weights.
    """

    cell: Cell
    events: str = "sample"
    rule: StopRule = field(default_factory=StopRule)
    warm_up: Annotated[float, Field("", least=0)] = 5.0
    threads: Annotated[int, Field("", least=0, most=2**16)] = 0
    processors: Annotated[tuple[int, ...], Field("", least=0, most=2**16)] = ()
    memory_bytes: Annotated[int, Field("", least=0, most=2**62)] = 0
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
            If a field is missing, unknown, or of another type or range.
        """
        if isinstance(values, Mapping) and "cell" not in values:
            return cls(Cell.from_json(values))
        if not isinstance(values, Mapping):
            raise BadInput("a job must be a JSON object: a cell, or {'cell': …}")
        wrong = fields_problem(cls, values)
        if wrong:
            raise BadInput(f"this job is not usable: {wrong}; give a cell or {{'cell': …}}")
        kept = dict(values) | {"cell": Cell.from_json(values["cell"])}
        kept["rule"] = StopRule(**kept.get("rule", {}))
        kept["processors"] = tuple(kept.get("processors", ()))
        return cls(**kept)


def read_job(file: Path) -> Job:
    """Read a job from a file of JSON, or from the standard input for ``-``.

    Raises
    ------
    BadInput
        If the file cannot be read or holds no job.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        return Job.from_json(json.loads(text))
    except OSError as error:
        raise BadInput(f"cannot read the cell {file}: {error.strerror}") from None
    except RecursionError:
        raise BadInput(f"{file} is nested too deeply to be a cell") from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} is not JSON: {error}") from None
