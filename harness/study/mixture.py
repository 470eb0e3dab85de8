"""Simulation of the training events, most of them enriched in rare classes.

In events like those of the public data set, one voxel in two hundred belongs to a Michel electron
and one in fifty to a delta ray, too few for a training of one hour. Three of four files are
therefore simulated with more of them: two with the preset ``michel``, one with ``delta``. Complete
files are kept, so that an interrupted simulation can be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from harness.events.native import EventWriter
from harness.events.sample import LEAST_VOXELS
from harness.events.simulate import Recipe, simulate

FILE_EVENTS = 512
"""Simulated events per file; events with very few voxels are not written."""

PRESETS = ("michel", "standard", "michel", "delta")

MIXTURE_SEED = 100_000
"""Seed of the first event file of a mixture, to which 1000 per voxel of the side is added."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class EventFile:
    """A file of simulated events: its path, its recipe and the number of simulated events."""

    path: Path
    recipe: Recipe
    events: int


@dataclass(frozen=True)
class EventFolder:
    """A folder of files of simulated events.

    Attributes
    ----------
    path : Path
        The folder. Files are named by preset, size, seed and number of events.
    size : int
        Voxels per side.
    count : int
        Number of simulated events; events with fewer voxels than
        ``harness.events.sample.LEAST_VOXELS`` are not written.
    seed : int
        Seed of the first file; each further file has the next seed.
    presets : tuple of str
        Presets of consecutive files, repeated cyclically.
    """

    path: Path
    size: int
    count: int
    seed: int
    presets: tuple[str, ...] = PRESETS

    def missing(self) -> list[EventFile]:
        """Return the files that do not exist."""
        return [file for file in self._files() if not file.path.exists()]

    def simulate_missing(self, progress: Report, *, processes: int | None = None) -> None:
        """Simulate the files that do not exist.

        Parameters
        ----------
        progress : callable
            Called after every event with the number of events so far and ``count``.
        processes : int, optional
            As for ``harness.events.simulate.simulate``; the events do not depend on it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        done = 0
        for file in self._files():
            if not file.path.exists():
                source = f"simulated: {file.recipe}"
                with EventWriter(file.path, self.size, 3, source) as writer:
                    events = simulate(file.recipe, file.events, processes=processes)
                    for i, event in enumerate(events, 1):
                        if len(event) >= LEAST_VOXELS:
                            writer.append(event)
                        progress(done + i, self.count)
            done += file.events
            progress(done, self.count)

    def _files(self) -> Iterator[EventFile]:
        for number, done in enumerate(range(0, self.count, FILE_EVENTS)):
            events = min(FILE_EVENTS, self.count - done)
            recipe = Recipe(self.size, self.seed + number, self.presets[number % len(self.presets)])
            name = f"{number:04d}-{recipe.preset}-{self.size}px-{recipe.seed}-{events}.h5"
            yield EventFile(self.path / name, recipe, events)


def simulate_folders(folders: Sequence[EventFolder], console: Console) -> None:
    """Simulate the missing files of several folders, and show the progress.

    Raises
    ------
    BadInput
        If files are missing, and the packages of the simulation as well.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        for folder in folders:
            task = live.add_task(f"events of {folder.size} px", total=folder.count)

            def show(done: int, total: int, task: TaskID = task) -> None:
                live.update(task, completed=done)

            folder.simulate_missing(show)
            console.print(
                f"{folder.count:,} events of {folder.size} px in {folder.path.name}",
                highlight=False,
            )
