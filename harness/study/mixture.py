"""The training events: simulated, most of them rich in rare classes, in files that add up.

Events as in the public data set hold too few Michel electrons and delta rays to learn from in an
hour: one voxel in two hundred and one in fifty. Three files of four are therefore simulated with
more of them, two with the preset ``michel`` and one with ``delta``. A file that is complete is
never made again: an interrupted simulation goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.events.native import EventWriter
from harness.events.sample import LEAST_VOXELS
from harness.events.simulate import Recipe, simulate

FILE_EVENTS = 512
"""Events simulated for one file; those that nearly leave the image empty are left out of it."""

PRESETS = ("michel", "standard", "michel", "delta")

Progress = Callable[[int, int], None]


def make_mixture(
    folder: Path,
    size: int,
    count: int,
    seed: int,
    progress: Progress,
    *,
    presets: tuple[str, ...] = PRESETS,
    processes: int | None = None,
) -> None:
    """Simulate the files of a folder that are still missing.

    Parameters
    ----------
    folder : Path
        Made if needed; files are named by preset, size, seed and events.
    size : int
        Voxels a side.
    count : int
        Events to simulate; events under `harness.events.sample.LEAST_VOXELS` voxels are dropped.
    seed : int
        The first file's seed; each file has the next one.
    progress : callable
        Called with the events simulated so far and `count` after every event.
    presets : tuple of str
        Take turns from file to file.
    processes : int, optional
        As for `harness.events.simulate.simulate`; the events do not depend on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    while done < count:
        number = done // FILE_EVENTS
        events = min(FILE_EVENTS, count - done)
        recipe = Recipe(size, seed + number, presets[number % len(presets)])
        path = folder / f"{number:04d}-{recipe.preset}-{size}px-{recipe.seed}-{events}.h5"
        if not path.exists():
            with EventWriter(path, size, 3, f"simulated: {recipe}") as writer:
                for i, event in enumerate(simulate(recipe, events, processes=processes), 1):
                    if len(event) >= LEAST_VOXELS:
                        writer.append(event)
                    progress(done + i, count)
        done += events
        progress(done, count)
