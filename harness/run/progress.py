"""Shows how a run goes: a live line on a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness.run.launch import Code, Task
from harness.run.sampling import half_width
from harness.spec.cell import Cell
from harness.spec.metrics import format_value, lookup, memory_metric


class RunProgress:
    """Tells a person which cell is measured, what came out, and how long the rest may take.

    Parameters
    ----------
    total : int
        Records that the run will write.
    console : rich.console.Console
        Where to; whether it is a terminal decides what is shown.
    now : callable
        Seconds since any moment.
    other : Code, optional
        Code that is measured in turns with this one: its cells are told apart by their commit.
    """

    def __init__(
        self,
        total: int,
        console: Console,
        now: Any = time.monotonic,
        other: Code | None = None,
    ) -> None:
        self._total = total
        self._other = other
        self._done = 0
        self._measured = 0
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
        self._console.print(escape(text), highlight=False, soft_wrap=True)
        self._console.file.flush()  # a log file is read while the run goes on

    def started(self, cells: Sequence[Cell]) -> None:
        """Some cells, measured in turns, have begun."""
        names = ", ".join(dict.fromkeys(cell.backend for cell in cells))
        self._live.update(self._line, description=escape(f"{cells[0].question}: {names}"))

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """More samples of a cell have come in."""
        text = f"{self._title(task.job.cell, task.code)}: {times(samples)}"
        self._live.update(self._line, description=escape(f"{text}{self._left()}"))

    def finished(self, record: Mapping[str, Any], code: Code | None = None) -> None:
        """A record is written, of the given code."""
        self._done += 1
        self._measured += 1
        title = self._title(Cell.from_json(record["cell"]), code)
        width = len(str(self._total))
        self.say(f"[{self._done:>{width}}/{self._total}] {title}: {summary(record)}{self._left()}")
        self._live.update(self._line, completed=self._done)

    def left_out(self, record: Mapping[str, Any]) -> None:
        """A record of a cell that cannot run here is written: one line says so of all alike."""
        self._done += 1
        text = f"{record['cell']['backend']} is left out: {record['reason']}"
        if text not in self._said:
            self._said.add(text)
            self.say(text)
        self._live.update(self._line, completed=self._done)

    def _title(self, cell: Cell, code: Code | None) -> str:
        """Name a cell, and the other code's commit where two are measured in turns."""
        if self._other is None or code != self._other:
            return cell.title
        return f"{cell.title} at {self._other.commit[:12]}"

    def _left(self) -> str:
        """Estimate the time left from the cells that took any."""
        rest = self._total - self._done
        if not self._measured or not rest:
            return ""
        seconds = (self._now() - self._start) / self._measured * rest
        return f"; about {duration(seconds)} left"


def times(samples: Sequence[float]) -> str:
    """Write the median with the relative half width of its interval and the number of samples."""
    width = half_width(samples)
    spread = f" ± {100 * width:.1f} %" if width < float("inf") else ""
    return f"{format_value(median(samples), 's')}{spread} ({len(samples)} samples)"


def summary(record: Mapping[str, Any]) -> str:
    """Write what came out of a cell in a few words."""
    if record["outcome"] != "ok":
        return f"{record['outcome']}: {record['reason']}".rstrip(": ")
    parts = [times(record["host_seconds"])]
    memory = memory_metric(record).value(record)
    if memory is not None:
        parts.append(f"peak memory {format_value(memory, 'bytes')}")
    error = lookup(record, "error.rel_rmse")
    if error is not None:
        parts.append(f"error {error:.0e}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
