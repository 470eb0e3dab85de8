"""Files of the predicted classes of held-out events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events import Event, EventSet


@dataclass(frozen=True)
class Predicted:
    """An event with the predicted class of each of its voxels."""

    event: Event
    predicted: NDArray[np.int64]

    @property
    def truth(self) -> NDArray[np.int64]:
        """True labels."""
        return self.event.labels.astype(np.int64)


def save_predictions(
    path: Path, predictions: list[NDArray[np.int64]], sha256: str, step: int
) -> None:
    """Write the predictions for all events of a set; the file is replaced as a whole.

    Parameters
    ----------
    path : Path
        File with the suffix ``.npz``.
    predictions : list of ndarray
        Predicted classes, one array per event.
    sha256 : str
        Hash of the events.
    step : int
        Step of the training after which the predictions were made.
    """
    part = path.with_name(f".{path.name}")
    counts = np.array([len(p) for p in predictions], np.int64)
    classes = np.concatenate([*predictions, np.zeros(0, np.int64)]).astype(np.uint8)
    with part.open("wb") as file:
        np.savez_compressed(
            file, counts=counts, classes=classes, sha256=np.array(sha256), step=np.array(step)
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def step_of(path: Path) -> int:
    """Return the step of the training that made the predictions in a file.

    Returns
    -------
    int
        -1 if there is no file or it is damaged.
    """
    try:
        return int(_read(path)["step"])
    except (DamagedPredictions, TypeError, ValueError):
        return -1


def load_predictions(path: Path, events: EventSet, classes: int) -> Iterator[Predicted]:
    """Yield each event with its predictions.

    Parameters
    ----------
    path : Path
        A file of ``save_predictions``.
    events : EventSet
        The events that were predicted.
    classes : int
        Number of classes of the network.

    Raises
    ------
    BadInput
        If the file is damaged or holds predictions for other events.
    """
    try:
        found = _read(path)
    except DamagedPredictions:
        raise BadInput(
            f"{path} is damaged; repeat the study's command to make the predictions again"
        ) from None
    counts, predicted = found["counts"], found["classes"]
    other = str(found["sha256"]) != events.sha256 or counts.tolist() != list(map(len, events))
    if other or (predicted.size and predicted.max() >= classes):
        raise BadInput(f"{path} holds predictions for other events; remove it to make them again")
    edges = np.cumsum(counts)[:-1]
    for event, labels in zip(events, np.split(predicted.astype(np.int64), edges), strict=True):
        yield Predicted(event, labels)


class DamagedPredictions(ValueError):
    """A file that holds no predictions."""


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a file: one of them may be intact in a truncated file.

    Raises
    ------
    DamagedPredictions
        If an array is missing or of another type or length.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            found = {name: file[name] for name in ("counts", "classes", "sha256", "step")}
    except Exception:  # numpy's reader raises whatever its parsers raise
        raise DamagedPredictions(f"{path} is damaged") from None
    counts, classes = found["counts"], found["classes"]
    # A member of the archive that is no array comes as bytes.
    kinds = [each.dtype.kind for each in found.values() if isinstance(each, np.ndarray)]
    if len(kinds) != len(found):
        raise DamagedPredictions(f"{path} is damaged")
    if (
        kinds[:2] != ["i", "u"]
        or counts.ndim != 1
        or classes.ndim != 1
        or counts.sum() != len(classes)
    ):
        raise DamagedPredictions(f"{path} is damaged")
    return found
