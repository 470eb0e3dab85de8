"""Files of events derived from the sample: embedded in larger volumes, overlaid, or filled up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events import Event, collate
from harness.events.cube import symmetries, transform
from harness.events.event import voxel_keys, voxels_of_keys
from harness.events.native import EventWriter


def write_once(path: Path, events: Iterable[Event], source: str) -> Path:
    """Write events to a file, unless the file exists, and return its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = list(events)
        with EventWriter(path, listed[0].size, listed[0].dim, source) as writer:
            for event in listed:
                writer.append(event)
    return path


def embed(event: Event, size: int) -> Event:
    """Return an event, unchanged, in the middle of a larger volume.

    Raises
    ------
    BadInput
        If the volume is smaller than that of the event.
    """
    if size < event.size:
        raise BadInput(f"an event of {event.size} px does not fit into {size} px")
    voxels = event.voxels + np.int32((size - event.size) // 2)
    name = f"{event.name}, in {size} px"
    return Event(voxels, event.energies, event.labels, size, name)


def overlay(events: Sequence[Event]) -> Event:
    """Return several events in one volume, with summed energies.

    A voxel in several events has the label of the first of them.

    Raises
    ------
    BadInput
        If the sizes differ or there is no event.
    """
    joined = collate(events)  # raises for different sizes
    voxels = joined["sites"][:, 1:]
    keys, first, place = np.unique(
        voxel_keys(voxels, joined["spatial_size"]), return_index=True, return_inverse=True
    )
    energies = np.bincount(place, joined["features"][:, 0], minlength=len(keys))
    labels = np.concatenate([event.labels for event in events])[first]
    return Event(
        np.ascontiguousarray(voxels[first]),
        energies.astype(np.float32),
        labels,
        events[0].size,
        f"{len(events)} events overlaid, first {events[0].name}",
    )


def fill(events: Sequence[Event], occupancy: float) -> Event:
    """Return events overlaid in many orientations until a fraction of the volume is active.

    Neighbourhoods are those of tracks and showers as long as events hardly overlap. Energies are
    summed, a voxel in several events has the label of the first of them, and the last event is cut
    so that the fraction is exact. Voxels that all orientations together leave empty get the
    minimum energy.

    Parameters
    ----------
    events : sequence of Event
        Events of one size, at least one of them with a voxel.
    occupancy : float
        Active fraction, in (0, 1].
    """
    size, dim = events[0].size, events[0].dim
    volume = size**dim
    wanted = max(1, round(occupancy * volume))
    energies = np.zeros(volume, np.float32)
    labels = np.zeros(volume, np.uint8)
    order: list[NDArray[np.int64]] = []
    count = 0
    for turn, event in product(symmetries(dim), events):
        if count >= wanted:
            break
        keys = voxel_keys(transform(event.voxels, size, turn), size)
        new = energies[keys] == 0
        labels[keys[new]] = event.labels[new]
        energies[keys] += event.energies
        order.append(keys[new])
        count += int(new.sum())
    empty = np.flatnonzero(energies == 0)
    energies[empty] = min(event.energies.min() for event in events if len(event))
    chosen = np.concatenate([*order, empty])[:wanted]
    name = f"{wanted} sites of overlaid events, first {events[0].name}"
    return Event(voxels_of_keys(chosen, size, dim), energies[chosen], labels[chosen], size, name)
