"""Accuracy measures of a voxel classification, from true and predicted labels."""

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
        True labels. Voxels whose label is not in ``0 … classes - 1`` are ignored.
    predicted : ndarray of int, shape (N,)
        Predicted labels in ``0 … classes - 1``.
    classes : int
        Number of classes.

    Returns
    -------
    ndarray of int64, shape (classes, classes)
    """
    labelled = (truth >= 0) & (truth < classes)
    pairs = truth[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def nonzero_accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the fraction of active voxels with the correct class; NaN without voxels."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def class_accuracy(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the fraction of correct voxels per true class (recall); NaN for an empty class."""
    return _ratio(np.diag(confusion), confusion.sum(axis=1))


def class_purity(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the fraction of correct voxels per predicted class; NaN for an empty class."""
    return _ratio(np.diag(confusion), confusion.sum(axis=0))


def intersection_over_union(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the intersection over union of true and predicted voxels per class."""
    both = np.diag(confusion)
    return _ratio(both, confusion.sum(axis=0) + confusion.sum(axis=1) - both)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part, np.float64) / np.asarray(whole, np.float64)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of the classification of a set of events.

    Attributes
    ----------
    events : ndarray of float64
        Nonzero accuracy of every event with a labelled voxel.
    confusion : ndarray of int64, shape (classes, classes)
        Confusion matrix of all events; rows are true classes.
    """

    events: NDArray[np.float64]
    confusion: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean over events of the nonzero accuracy, the measure of the 2018 study."""
        return float(self.events.mean()) if len(self.events) else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation over events of the nonzero accuracy."""
        return float(self.events.std()) if len(self.events) else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.std / float(np.sqrt(len(self.events))) if len(self.events) else float("nan")


def measure_accuracy(
    truths: Sequence[NDArray[np.integer]],
    predictions: Sequence[NDArray[np.integer]],
    classes: int,
) -> Accuracy:
    """Return the accuracy of predictions for several events.

    Parameters
    ----------
    truths, predictions : sequence of ndarray
        True and predicted labels of the voxels of each event.
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
