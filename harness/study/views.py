"""Views of events: their source, a crop, a projection, and a reduction to two classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BadInput
from harness.events import Event, EventSet, open_events
from harness.events.classes import CLASS_NAMES
from harness.events.event_set import JoinedSets
from harness.events.projection import ProjectedSet
from harness.events.track_shower import TrackShowerSet

_PLANE = "xy"


@dataclass(frozen=True)
class View:
    """Events of a source, cropped, projected and with merged classes as requested.

    Attributes
    ----------
    source : str
        ``sample``, a file of events, or a folder of such files.
    size : int
        Voxels per side of the images in the source.
    classes : int
        5, or 2 for track and shower.
    dim : int
        3, or 2 for the projection on the xy plane.
    crop : int
        Voxels per side of the cube that is cut out of every event; 0 for the whole event.
    also : tuple of str
        Further files or folders of events, after those of the source. Each has events of one size,
        of at most ``size`` voxels per side.

    Raises
    ------
    BadInput
        If a value is not supported.
    """

    source: str
    size: int
    classes: int = 5
    dim: int = 3
    crop: int = 0
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "also", tuple(self.also))  # a list in JSON
        if self.classes not in CLASS_NAMES:
            raise BadInput(f"{self.classes} classes are unknown; choose 5 or 2")
        if self.dim not in (2, 3):
            raise BadInput(f"{self.dim} dimensions are unknown; choose 2 or 3")
        if not 0 <= self.crop <= self.size:
            raise BadInput(f"a crop of {self.crop} does not fit into {self.size} voxels per side")

    def without_folder(self) -> View:
        """Return the view without the folder of its source, which changes with a move."""
        names = tuple(Path(source).name for source in self.also)
        return replace(self, source=Path(self.source).name, also=names)

    def to_json(self) -> dict[str, Any]:
        """Return the view as JSON values."""
        return vars(self) | {"also": list(self.also)}

    @property
    def image_size(self) -> int:
        """Voxels per side of the input of the network."""
        return self.crop or self.size

    def open(self) -> EventSet:
        """Open the events; they are read on access."""
        events = _open(self.source, self.size)
        if self.also:
            more = [_open(source, None) for source in self.also]
            events = JoinedSets(self.source, [events, *more])
        if self.crop:
            events = CroppedSet(events, self.crop)
        if self.dim == 2:
            events = ProjectedSet(events, _PLANE)
        return TrackShowerSet(events) if self.classes == 2 else events


def event_files(source: str) -> list[Path]:
    """Return the event files of a folder, by name.

    Raises
    ------
    BadInput
        If the folder has none.
    """
    files = sorted(Path(source).glob("*.h5"))
    if not files:
        raise BadInput(f"{source} holds no event files (*.h5); give a file or another folder")
    return files


def _open(source: str, size: int | None) -> EventSet:
    if not Path(source).is_dir():
        return open_events(source, size=size)
    files = event_files(source)
    return JoinedSets(str(Path(source)), [open_events(file, size=size) for file in files])


class CroppedSet(EventSet):
    """Cubes cut out of events, each around a random voxel of its event.

    The number of the event is the seed, so that crops are reproducible.

    Parameters
    ----------
    whole : EventSet
        Events to cut.
    side : int
        Voxels per side of a cube. A cube that would extend beyond the image is shifted inside.
    """

    def __init__(self, whole: EventSet, side: int) -> None:
        self._whole, self._side = whole, side
        self.name = f"{whole.name}, cut to {side} px"
        self.sizes = (side,)

    @property
    def sha256(self) -> str:
        """Hash of the set and the side of the cubes."""
        return hashlib.sha256(f"{self._whole.sha256} crop {self._side}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._whole)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read and cut consecutive events."""
        events = self._whole.read(start, stop)
        return [crop(event, self._side, start + i) for i, event in enumerate(events)]


def crop(event: Event, side: int, seed: int) -> Event:
    """Return a cube around a random voxel of an event; an empty event stays empty."""
    name = f"{event.name}, cut to {side} px"
    if not len(event):
        return replace(event, size=side, name=name)
    centre = event.voxels[np.random.default_rng(seed).integers(len(event))]
    corner = np.clip(centre - side // 2, 0, event.size - side)
    inside = ((event.voxels >= corner) & (event.voxels < corner + side)).all(axis=1)
    voxels = (event.voxels[inside] - corner).astype(np.int32)
    return Event(voxels, event.energies[inside], event.labels[inside], side, name)
