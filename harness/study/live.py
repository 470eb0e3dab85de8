"""Live display of a training: a progress bar on a terminal, lines at intervals elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBar

from harness.spec.metrics import format_duration
from harness.study.training import Progress

_LINE_SECONDS = 15.0


class LiveTraining:
    """Displays the progress of a training.

    Parameters
    ----------
    name : str
        Name of the training.
    console : Console
        Destination; whether it is a terminal determines the form of the display.
    now : callable
        Returns a time in seconds.
    """

    def __init__(
        self, name: str, console: Console, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._console, self._now = name, console, now
        self._last_line = now()
        self._live = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task(escape(name), total=1.0)

    def __enter__(self) -> LiveTraining:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        """Display the progress; the last step always gets a line."""
        text = (
            f"{self._name}: step {progress.step:,}, loss {progress.loss:.3f}, "
            f"accuracy {progress.accuracy:.3f}"
        )
        if progress.fraction < 1:
            text += f", {format_duration(progress.left)} left"
        self._live.update(self._task, completed=progress.fraction, description=escape(text))
        last = progress.fraction >= 1
        due = self._now() - self._last_line >= _LINE_SECONDS
        if last or (not self._console.is_terminal and due):
            self._last_line = self._now()
            self._console.print(escape(text), highlight=False)
