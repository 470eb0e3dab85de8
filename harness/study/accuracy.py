"""How well voxels are classified: pure functions of true and predicted labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Count voxels by true class (row) and predicted class (column).

    Parameters
    ----------
    truth : ndarray of int, shape (N,)
        Voxels whose label is none of ``0 … classes - 1`` are left out.
    predicted : ndarray of int, shape (N,)
        ``0 … classes - 1``.
    classes : int
        Number of classes.

    Returns
    -------
    ndarray of int64, shape (classes, classes)
    """
    known = (truth >= 0) & (truth < classes)
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def nonzero_accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the fraction of active voxels whose class is right; NaN without any voxel."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, of the voxels of each true class, the fraction that is found; NaN without any."""
    return _ratio(np.diag(confusion), confusion.sum(axis=1))


def class_purity(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, of the voxels predicted as each class, the fraction that is right; else NaN."""
    return _ratio(np.diag(confusion), confusion.sum(axis=0))


def intersection_over_union(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, for each class, the voxels that are both over those that are either."""
    right = np.diag(confusion)
    return _ratio(right, confusion.sum(axis=0) + confusion.sum(axis=1) - right)


def _ratio(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part, np.float64) / np.asarray(whole, np.float64)


@dataclass(frozen=True)
class Accuracy:
    """How well the events of a set are classified.

    Attributes
    ----------
    events : ndarray of float64
        Nonzero accuracy of every event that has a voxel of a class.
    confusion : ndarray of int64, shape (classes, classes)
        Summed over events; rows are true classes.
    """

    events: NDArray[np.float64]
    confusion: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean over events of the nonzero accuracy: the study's measure."""
        return float(self.events.mean()) if len(self.events) else float("nan")

    @property
    def std(self) -> float:
        """Spread of the nonzero accuracy over events (standard deviation of the set)."""
        return float(self.events.std()) if len(self.events) else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.std / float(np.sqrt(len(self.events))) if len(self.events) else float("nan")


def summarise(
    truths: Sequence[NDArray[np.integer]],
    predictions: Sequence[NDArray[np.integer]],
    classes: int,
) -> Accuracy:
    """Summarise the predictions of several events.

    Parameters
    ----------
    truths, predictions : sequence of ndarray
        Labels of the voxels of each event.
    classes : int
        Number of classes.
    """
    matrices = [
        confusion_matrix(truth, predicted, classes)
        for truth, predicted in zip(truths, predictions, strict=True)
    ]
    accuracies = [nonzero_accuracy(matrix) for matrix in matrices if matrix.sum()]
    total = sum(matrices, np.zeros((classes, classes), np.int64))
    return Accuracy(np.array(accuracies, np.float64), total)
