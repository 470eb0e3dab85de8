"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness.run.sampling import half_width
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.spec.cell import Cell
from harness.spec.metrics import format_duration, format_value, lookup, memory_metric
from harness.terminal import plain


class RunProgress:
    """Displays the current cell, the results so far, and an estimate of the time left.

    Parameters
    ----------
    total : int
        Number of records that the run will write.
    console : rich.console.Console
        Destination; the live line is shown on a terminal only.
    now : callable
        Clock, in seconds.
    other : EngineSource, optional
        Source that is measured in turns with this one; its cells are shown with its label.
    cost : callable, optional
        The expected time of a cell, in any unit; by default all cells take equally long.
    work : float
        The expected time of all cells that can be measured; 0 for the number of records.
    """

    def __init__(
        self,
        total: int,
        console: Console,
        now: Callable[[], float] = time.monotonic,
        other: EngineSource | None = None,
        cost: Callable[[Cell], float] | None = None,
        work: float = 0.0,
    ) -> None:
        self._total = total
        self._cost = cost or (lambda cell: 1.0)
        self._work = work or float(total)
        self._other = other
        self._done = 0
        self._measured = 0.0
        self._said: set[str] = set()
        self._console = console
        self._now = now
        self._start = now()
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.completed:.0f}/{task.total:.0f}[/bold]"),
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._line = self._live.add_task("starting", total=total)

    def __enter__(self) -> RunProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(escape(plain(text)), highlight=False, soft_wrap=True)
        self._console.file.flush()  # a log file is read while the run goes on

    def started(self, cells: Sequence[Cell]) -> None:
        """Show the cells whose measurement in turns starts."""
        names = ", ".join(dict.fromkeys(cell.backend for cell in cells))
        self._live.update(self._line, description=escape(f"{cells[0].question.label}: {names}"))

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """Show the samples of a cell so far."""
        text = f"{self._title(task.job.cell, task.source)}: {format_samples(samples)}"
        self._live.update(self._line, description=escape(f"{text}{self._left()}"))

    def finished(self, record: Mapping[str, Any], source: EngineSource | None = None) -> None:
        """Show a record that has been written, of the given source."""
        self._done += 1
        cell = Cell.from_json(record["cell"])
        self._measured += self._cost(cell)
        title = self._title(cell, source)
        width = len(str(self._total))
        self.say(
            f"[{self._done:>{width}}/{self._total}] {title}: {format_outcome(record)}{self._left()}"
        )
        self._live.update(self._line, completed=self._done)

    def left_out(self, record: Mapping[str, Any]) -> None:
        """Show a record of a cell that cannot run here: one line for all with the same reason."""
        self._done += 1
        text = f"{record['cell']['backend']} is left out: {record['reason']}"
        if text not in self._said:
            self._said.add(text)
            self.say(text)
        self._live.update(self._line, completed=self._done)

    def _title(self, cell: Cell, source: EngineSource | None) -> str:
        """Return the title of a cell, with the source's label if it is the other one."""
        if self._other is None or source != self._other:
            return cell.title
        return f"{cell.title} {source.label}"

    def _left(self) -> str:
        """Return an estimate of the time left, from the cells measured so far."""
        rest = self._work - self._measured
        if not self._measured or self._done == self._total or rest <= 0:
            return ""
        seconds = (self._now() - self._start) / self._measured * rest
        return f"; about {format_duration(seconds)} left"


def format_samples(samples: Sequence[float]) -> str:
    """Format the median, the relative half width of its interval and the number of samples."""
    width = half_width(samples)
    spread = f" ± {100 * width:.1f} %" if width < float("inf") else ""
    return f"{format_value(median(samples), 's')}{spread} ({len(samples)} samples)"


def format_outcome(record: Mapping[str, Any]) -> str:
    """Format the outcome of a cell in a few words."""
    if record["outcome"] != "ok":
        return f"{record['outcome']}: {record['reason']}".rstrip(": ")
    parts = [format_samples(record["host_seconds"])]
    memory = memory_metric(record).value(record)
    if memory is not None:
        parts.append(f"peak memory {format_value(memory, 'bytes')}")
    error = lookup(record, "error.rel_rmse")
    if error is not None:
        parts.append(f"error {error:.0e}")
    return ", ".join(parts)
