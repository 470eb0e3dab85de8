"""Accuracies in words, for the terminal."""

from __future__ import annotations

from harness.accuracy.classification import Accuracy, class_accuracy, class_purity
from harness.events.classes import CLASS_NAMES


def accuracy_lines(accuracy: Accuracy) -> list[str]:
    """Return the nonzero accuracy, and the accuracy and purity of each class."""
    lines = [
        f"nonzero accuracy {100 * accuracy.mean:.2f} ± {100 * accuracy.standard_error:.2f} % over "
        f"{len(accuracy.events):,} events"
    ]
    recalls, purities = class_accuracy(accuracy.confusion), class_purity(accuracy.confusion)
    names = CLASS_NAMES[len(accuracy.confusion)]
    for name, recall, purity in zip(names, recalls, purities, strict=True):
        shares = ["–" if value != value else f"{100 * value:.1f} %" for value in (recall, purity)]
        lines.append(f"{name:>8}: accuracy {shares[0]}, purity {shares[1]}")
    return lines
