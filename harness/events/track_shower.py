"""Two classes instead of five: track and shower."""

import hashlib
from dataclasses import replace

import numpy as np

from harness.events.event import Event, Label
from harness.events.event_set import EventSet

_TRACKS = (Label.HIP, Label.MIP)


class TrackShowerSet(EventSet):
    """Events with two classes: 0 for HIP and MIP, 1 for showers, delta rays and Michel electrons.

    Parameters
    ----------
    whole : EventSet
        Events with five classes.
    """

    def __init__(self, whole: EventSet) -> None:
        self._whole = whole
        self.name = f"{whole.name}, track against shower"
        self.sizes = whole.sizes

    @property
    def sha256(self) -> str:
        """Hash of the set and of the reduction to two classes."""
        return hashlib.sha256(f"{self._whole.sha256} track-shower".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._whole)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events with merged classes."""
        return [track_or_shower(event) for event in self._whole.read(start, stop)]


def track_or_shower(event: Event) -> Event:
    """Return an event with the five classes merged into two; other labels are unchanged."""
    labels = event.labels.copy()
    labels[event.labels <= Label.MICHEL] = 1
    labels[np.isin(event.labels, _TRACKS)] = 0
    return replace(event, labels=labels)
