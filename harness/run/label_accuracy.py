"""Accuracy of a network's labels, beside the labels of the float64 reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.accuracy.classification import (
    class_accuracy,
    class_purity,
    measure_accuracy,
    nonzero_accuracy,
)
from harness.events.classes import CLASS_LOOKS
from harness.events.event import CLASSES, Label
from harness.results.record import LabelAccuracy

if TYPE_CHECKING:
    from torch import Tensor

    from harness.run.engine_interface import SparseBatch


def label_accuracy(
    batch: SparseBatch, logits: Tensor, reference: Tensor | None
) -> LabelAccuracy | None:
    """Return the accuracy of the labels of a forward pass.

    Parameters
    ----------
    batch : SparseBatch
        The events with their labels.
    logits : Tensor, shape (N, classes)
        Output of the engine.
    reference : Tensor, shape (N, classes), optional
        Output of the float64 reference.

    Returns
    -------
    LabelAccuracy or None
        None if the events have no labels, or labels of other classes than the network.
    """
    if batch.labels is None or logits.shape[1] != CLASSES:
        return None
    numbers = batch.sites[:, 0].cpu().numpy()
    truth = batch.labels.cpu().numpy()
    predicted = logits.float().argmax(1).cpu().numpy()
    own = [numbers == event for event in range(batch.batch_size)]
    accuracy = measure_accuracy(
        [truth[some] for some in own], [predicted[some] for some in own], CLASSES
    )
    matrix = accuracy.confusion
    if not matrix.sum():
        return None
    labelled = (truth >= 0) & (truth < CLASSES)
    right = labelled & (predicted == truth)
    names = [CLASS_LOOKS[Label(label)].name for label in range(CLASSES)]
    found: LabelAccuracy = {
        "nonzero": accuracy.mean,
        "voxels": int(matrix.sum()),
        "voxel_share": nonzero_accuracy(matrix),
        "event_labelled": [int((labelled & some).sum()) for some in own],
        "event_correct": [int((right & some).sum()) for some in own],
        "confusion": dict(zip(names, matrix.tolist(), strict=True)),
        "class_accuracy": _by_class(names, class_accuracy(matrix)),
        "class_purity": _by_class(names, class_purity(matrix)),
        "flips": None,
        "lost": None,
        "gained": None,
    }
    if reference is not None:
        expected = reference.argmax(1).cpu().numpy()
        right_there = labelled & (expected == truth)
        found["flips"] = int((predicted != expected).sum())
        found["lost"] = int((right_there & ~right).sum())
        found["gained"] = int((right & ~right_there).sum())
    return found


def _by_class(names: list[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return numbers by class; None instead of NaN."""
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(names, values, strict=True)
    }
