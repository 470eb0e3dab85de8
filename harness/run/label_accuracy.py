"""Accuracy of a network's labels, beside the labels of the float64 reference."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.accuracy.classification import (
    class_accuracy,
    class_purity,
    measure_accuracy,
    nonzero_accuracy,
)
from harness.accuracy.michel import MichelSummary, reconstruct, summarize_michels
from harness.events.classes import CLASS_LOOKS
from harness.events.event import CLASSES, Label
from harness.results.record import LabelAccuracy

if TYPE_CHECKING:
    from torch import Tensor

    from harness.run.engine_interface import SparseBatch

Labels = NDArray[np.int64]


def label_accuracy(
    batches: Sequence[SparseBatch], logits: Sequence[Tensor], references: Sequence[Tensor] | None
) -> LabelAccuracy | None:
    """Return the accuracy of the labels of some forward passes.

    Parameters
    ----------
    batches : sequence of SparseBatch
        The events with their labels; the first feature is the energy.
    logits : sequence of Tensor, each of shape (N, classes)
        Outputs of the engine.
    references : sequence of Tensor, optional
        Outputs of the float64 reference.

    Returns
    -------
    LabelAccuracy or None
        None if no voxel has a label of one of the network's classes.
    """
    if logits[0].shape[1] != CLASSES or any(batch.labels is None for batch in batches):
        return None
    truths = _by_event(batches, [_array(batch.labels) for batch in batches])
    predicted = _by_event(batches, _classes(logits))
    accuracy = measure_accuracy(truths, predicted, CLASSES)
    matrix = accuracy.confusion
    if not matrix.sum():
        return None
    labelled = [(truth >= 0) & (truth < CLASSES) for truth in truths]
    right = [some & (p == t) for some, p, t in zip(labelled, predicted, truths, strict=True)]
    michels = _michels(batches, truths, predicted)
    names = [CLASS_LOOKS[Label(label)].name for label in range(CLASSES)]
    found: LabelAccuracy = {
        "nonzero": accuracy.mean,
        "voxels": int(matrix.sum()),
        "voxel_share": nonzero_accuracy(matrix),
        "event_labelled": [int(some.sum()) for some in labelled],
        "event_correct": [int(some.sum()) for some in right],
        "confusion": dict(zip(names, matrix.tolist(), strict=True)),
        "class_accuracy": _by_class(names, class_accuracy(matrix)),
        "class_purity": _by_class(names, class_purity(matrix)),
        "flips": None,
        "lost": None,
        "gained": None,
        "michel_true": michels.true_clusters,
        "michel_found": michels.found,
        "michel_candidates": michels.candidates,
        "michel_matched": michels.matched,
    }
    shown = int(np.argmax([len(p) for p in predicted]))
    labels = zlib.compress(predicted[shown].astype(np.uint8).tobytes(), 9)
    found["shown_event"] = shown
    found["shown_labels"] = base64.b64encode(labels).decode()
    if references is not None:
        expected = _by_event(batches, _classes(references))
        rows = list(zip(labelled, right, truths, predicted, expected, strict=True))
        found["flips"] = sum(int((p != e).sum()) for *_, p, e in rows)
        found["lost"] = sum(int((some & (e == t) & ~r).sum()) for some, r, t, _, e in rows)
        found["gained"] = sum(int((r & (e != t)).sum()) for _, r, t, _, e in rows)
    return found


def _michels(
    batches: Sequence[SparseBatch], truths: Sequence[Labels], predicted: Sequence[Labels]
) -> MichelSummary:
    """Reconstruct the Michel electrons as the 2018 study does."""
    voxels = _by_event(batches, [_array(batch.sites)[:, 1:] for batch in batches])
    energies = _by_event(batches, [_array(batch.features)[:, 0] for batch in batches])
    events = zip(voxels, energies, truths, predicted, strict=True)
    return summarize_michels(reconstruct(*event) for event in events)


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _classes(logits: Sequence[Tensor]) -> list[Labels]:
    return [_array(some.argmax(1)) for some in logits]


def _by_event(batches: Sequence[SparseBatch], values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Split the rows of some batches by event, in order."""
    found = []
    for batch, rows in zip(batches, values, strict=True):
        numbers = _array(batch.sites[:, 0])
        found += [rows[numbers == event] for event in range(batch.batch_size)]
    return found


def _by_class(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return numbers by class; None instead of NaN."""
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(names, values, strict=True)
    }
