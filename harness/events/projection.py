"""Projections of 3D events onto two axes."""

import hashlib

import numpy as np

from harness.errors import BadInput
from harness.events.event import Event, Label, voxel_keys, voxels_of_keys
from harness.events.event_set import EventSet

PLANES = {"xy": (0, 1), "yz": (1, 2), "zx": (2, 0)}
"""The axes that each projection keeps, in order."""


def project(event: Event, plane: str) -> Event:
    """Project an event: energies add up, the label is that of the largest deposit.

    Parameters
    ----------
    event : Event
        In 3D.
    plane : str
        A key of ``PLANES``.

    Returns
    -------
    Event
        In 2D. Among equal deposits the first in the order of the voxels decides.

    Raises
    ------
    BadInput
        If the plane is unknown or the event has two dimensions.
    """
    if plane not in PLANES:
        raise BadInput(f"plane {plane!r} is unknown; choose one of {', '.join(PLANES)}")
    if event.dim != 3:
        raise BadInput(f"{event.name} has {event.dim} dimensions; only 3D events can be projected")
    keys, pixel = np.unique(
        voxel_keys(event.voxels[:, PLANES[plane]], event.size), return_inverse=True
    )
    energies = np.bincount(pixel, event.energies, minlength=len(keys)).astype(np.float32)
    labels = np.full(len(keys), Label.UNKNOWN, np.uint8)
    # Written from the smallest deposit to the largest, so that the largest is the last.
    order = np.argsort(-event.energies, kind="stable")[::-1]
    labels[pixel[order]] = event.labels[order]
    voxels = voxels_of_keys(keys, event.size, dim=2)
    return Event(voxels, energies, labels, event.size, f"{event.name}, projected on {plane}")


class ProjectedSet(EventSet):
    """A set of 3D events that are projected on reading.

    Parameters
    ----------
    parent : EventSet
    plane : str
        A key of ``PLANES``.

    Raises
    ------
    BadInput
        If the plane is unknown.
    """

    def __init__(self, parent: EventSet, plane: str) -> None:
        if plane not in PLANES:
            raise BadInput(f"plane {plane!r} is unknown; choose one of {', '.join(PLANES)}")
        self._parent, self._plane = parent, plane
        self.name = f"{parent.name}, projected on {plane}"
        self.sizes = parent.sizes

    @property
    def sha256(self) -> str:
        """Hash of the 3D set's identity and the plane."""
        return hashlib.sha256(f"{self._parent.sha256} {self._plane}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._parent)

    def close(self) -> None:
        """Close the 3D set."""
        self._parent.close()

    def read(self, start: int, stop: int) -> list[Event]:
        """Read and project consecutive events."""
        return [project(event, self._plane) for event in self._parent.read(start, stop)]
