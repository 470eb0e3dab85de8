"""Event files for cells that vary one thing at a time: crops, larger volumes, overlaid events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.errors import BadInput
from harness.events import Event, collate
from harness.events.cube import symmetries, transform
from harness.events.event import voxel_keys
from harness.events.native import EventWriter


def write(path: Path, events: Iterable[Event], source: str) -> Path:
    """Write events to a file unless it is there already; return its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = list(events)
        with EventWriter(path, listed[0].size, listed[0].dim, source) as writer:
            for event in listed:
                writer.append(event)
    return path


def embed(event: Event, size: int) -> Event:
    """Put an event unchanged into the middle of a larger volume.

    Raises
    ------
    BadInput
        If the volume is smaller than the event's.
    """
    if size < event.size:
        raise BadInput(f"an event of {event.size} px does not fit into {size} px")
    voxels = event.voxels + np.int32((size - event.size) // 2)
    name = f"{event.name}, in {size} px"
    return Event(voxels, event.energies, event.labels, size, name)


def overlay(events: Sequence[Event]) -> Event:
    """Put several events into one volume: energies add up, the first event's labels win.

    Raises
    ------
    BadInput
        If sizes differ or there is no event.
    """
    joined = collate(events)  # refuses different sizes
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
    """Overlay events, each in many orientations, until a fraction of the volume is active.

    Neighbourhoods stay those of tracks and showers as long as events hardly overlap; a full
    volume has every neighbour. The last orientation is cut so that the fraction is met exactly.

    Parameters
    ----------
    events : sequence of Event
        Of one size, each with a voxel.
    occupancy : float
        In (0, 1].

    Raises
    ------
    BadInput
        If the events do not reach the fraction in all orientations.
    """
    size, dim = events[0].size, events[0].dim
    wanted = max(1, round(occupancy * size**dim))
    found: Event | None = None
    for turn in symmetries(dim):
        for event in events:
            turned = Event(
                transform(event.voxels, size, turn),
                event.energies,
                event.labels,
                size,
                event.name,
            )
            found = turned if found is None else overlay([found, turned])
            if len(found) >= wanted:
                return _first_sites(found, wanted)
    if found is None:
        raise BadInput("there is no event to fill a volume with")
    return _first_sites(_saturated(found), wanted)


def _saturated(event: Event) -> Event:
    """Activate every voxel; those without a deposit get the least energy of the event."""
    every = np.indices((event.size,) * event.dim, np.int32).reshape(event.dim, -1).T
    rest = every[~np.isin(voxel_keys(every, event.size), voxel_keys(event.voxels, event.size))]
    return Event(
        np.concatenate([event.voxels, rest]),
        np.append(event.energies, np.full(len(rest), event.energies.min(), np.float32)),
        np.append(event.labels, np.full(len(rest), event.labels[0], np.uint8)),
        event.size,
        event.name,
    )


def _first_sites(event: Event, count: int) -> Event:
    name = f"{event.name}, {count} sites"
    return Event(
        event.voxels[:count], event.energies[:count], event.labels[:count], event.size, name
    )
