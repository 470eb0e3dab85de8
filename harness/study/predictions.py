"""Predictions on held-out events: written once by the process that trained, read by the page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events import Event, EventSet


@dataclass(frozen=True)
class Predicted:
    """One event with the class that a network gave to each of its voxels."""

    event: Event
    predicted: NDArray[np.int64]

    @property
    def truth(self) -> NDArray[np.int64]:
        """True labels."""
        return self.event.labels.astype(np.int64)


def save(path: Path, predictions: list[NDArray[np.int64]], sha256: str, step: int) -> None:
    """Write the predictions for all events of a set, whole or not at all.

    Parameters
    ----------
    path : Path
        Ends in ``.npz``.
    predictions : list of ndarray
        One array an event.
    sha256 : str
        Identity of the events.
    step : int
        Of the training that the network had reached.
    """
    part = path.with_name(f".{path.name}")
    counts = np.array([len(p) for p in predictions], np.int64)
    classes = np.concatenate([*predictions, np.zeros(0, np.int64)]).astype(np.uint8)
    with part.open("wb") as file:
        np.savez_compressed(
            file, counts=counts, classes=classes, sha256=np.array(sha256), step=step
        )
    os.replace(part, path)


def step_of(path: Path) -> int:
    """Return the step of the training that predictions were made at; -1 without predictions."""
    if not path.exists():
        return -1
    with np.load(path) as file:
        return int(file["step"])


def load(path: Path, events: EventSet) -> Iterator[Predicted]:
    """Yield each event with its predictions.

    Raises
    ------
    BadInput
        If the predictions are for other events.
    """
    with np.load(path) as file:
        counts, classes, sha256 = file["counts"], file["classes"], str(file["sha256"])
    if sha256 != events.sha256 or len(counts) != len(events):
        raise BadInput(f"{path} holds predictions for other events; remove it to make them again")
    edges = np.cumsum(counts)[:-1]
    for event, predicted in zip(events, np.split(classes.astype(np.int64), edges), strict=True):
        yield Predicted(event, predicted)
