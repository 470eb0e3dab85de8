"""Forecast of how long a run takes, before it starts and while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.spec.cell import Cell
from harness.spec.metrics import format_duration
from harness.spec.suite import DENSE

START = 8.0
"""Seconds to start a worker, to import its engine and to compare its results with float64."""

DENSE_SECONDS, DENSE_BYTES = 25.0, 4.4e9
"""One dense forward pass of a 192 px event on two cores, in ``results/baseline.jsonl``."""

DENSE_CALLS = 7
"""Calls of a dense cell: three samples, two checks, one to warm up, one to measure memory."""

WORTH_SAYING = 120.0
"""Seconds from which a run tells its forecast."""


@dataclass(frozen=True)
class Forecast:
    """How long cells take on this machine, roughly.

    Attributes
    ----------
    budget : float
        Longest time of sampling per cell, in seconds.
    memory : float
        Memory that a worker on the CPU may use, in bytes.
    """

    budget: float
    memory: float

    def seconds(self, cell: Cell) -> float:
        """Return the seconds that a cell takes at most, unless its engine is unusually slow."""
        if cell.device != "cpu" or cell.backend not in DENSE or cell.dim != 3 or cell.layer:
            return START + self.budget
        volume = (cell.size / 192) ** 3 * cell.batch * (cell.model.filters / 16)
        passes = 3 if cell.phase == "step" else 1
        if volume * passes * DENSE_BYTES > self.memory:
            return 2 * START  # ends when the memory is exhausted
        return START + max(self.budget, DENSE_CALLS * passes * volume * DENSE_SECONDS)

    def sentence(self, cells: Sequence[Cell], command: str) -> str:
        """Return how long cells take, with a cheaper command; empty for a short run.

        Parameters
        ----------
        cells : sequence of Cell
            Those to measure, once per round.
        command : str
            The command line of the run; empty if there is none.
        """
        total = sum(map(self.seconds, cells))
        if total < WORTH_SAYING:
            return ""
        said = f"{len(cells)} cells, about {format_duration(total)}"
        dense = list(dict.fromkeys(cell.backend for cell in cells if cell.backend in DENSE))
        sparse = sum(self.seconds(cell) for cell in cells if cell.backend not in DENSE)
        if not command:
            return said
        if dense and 0 < sparse < 0.7 * total:
            without = " ".join(f"--exclude {name}" for name in dense)
            names = " and ".join(dense)
            return f"{said}; without {names} {format_duration(sparse)}: {command} {without}"
        if "--budget" not in command and self.budget > 1:
            shorter = total - len(cells) * (self.budget - 1)
            return f"{said}; less exactly in {format_duration(shorter)}: {command} --budget 1"
        return said
