"""Files of predicted labels and class probabilities, in HDF5.

The datasets are ``offsets`` (int64, events + 1), ``labels`` (uint8, one per voxel) and
``probabilities`` (float32, voxels x classes): the voxels of event ``i`` are rows ``offsets[i]`` to
``offsets[i + 1]``, in the order of the events' own file. The attributes name the events by their
hash, the weights, the engine and the precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event_set import EventSet
from harness.files import replacing
from harness.terminal import program

FORMAT = "sscn-bench predictions"
VERSION = 1

Labels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


def write_predictions(
    path: Path,
    events: Iterable[tuple[Labels, Probabilities]],
    classes: int,
    attributes: Mapping[str, Any],
) -> None:
    """Write a file of predictions, whole or not at all.

    Parameters
    ----------
    path : Path
        The file.
    events : iterable of (ndarray of uint8, ndarray of float32)
        Labels, shape (N,), and probabilities, shape (N, classes), of each event in order. One
        event at a time is in memory.
    classes : int
        Number of classes.
    attributes : mapping
        Attributes of the file besides its format; ``events_sha256`` names the events.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    import h5py

    with replacing(path, "--out") as part, h5py.File(part, "w", locking=False) as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, **attributes})
        labels = file.create_dataset("labels", (0,), np.uint8, maxshape=(None,), chunks=(1 << 16,))
        probabilities = file.create_dataset(
            "probabilities",
            (0, classes),
            np.float32,
            maxshape=(None, classes),
            chunks=(8192, classes),
        )
        offsets = [0]
        for own, chances in events:
            start, stop = offsets[-1], offsets[-1] + len(own)
            labels.resize(stop, axis=0)
            probabilities.resize(stop, axis=0)
            labels[start:stop] = own
            probabilities[start:stop] = chances
            offsets.append(stop)
        file["offsets"] = np.array(offsets, np.int64)


def read_labels(path: Path, events: EventSet, index: int) -> Labels:
    """Read the predicted labels of one event.

    Parameters
    ----------
    path : Path
        A file of ``write_predictions``.
    events : EventSet
        The events that were predicted.
    index : int
        Number of the event.

    Raises
    ------
    BadInput
        If the file cannot be read or holds predictions of other events.
    """
    import h5py

    if not path.is_file():
        raise BadInput(f"there is no file {path}; make it with: {program()} predict")
    try:
        with h5py.File(path) as file:
            kind, sha256 = file.attrs.get("format"), str(file.attrs.get("events_sha256", ""))
            if kind != FORMAT:
                raise BadInput(
                    f"{path} is no file of predictions; make it with: {program()} predict"
                )
            offsets = np.asarray(file["offsets"][:], np.int64)
            labels = file["labels"]
            if sha256 != events.sha256 or len(offsets) != len(events) + 1:
                raise BadInput(f"{path} holds predictions of other events than {events.name}")
            found = np.asarray(labels[offsets[index] : offsets[index + 1]], np.uint8)
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is damaged; make it again with: {program()} predict") from None
    if len(found) != len(events[index]):
        raise BadInput(f"{path} is damaged; make it again with: {program()} predict")
    return found
