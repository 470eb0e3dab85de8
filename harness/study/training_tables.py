"""The CSV files of a training: its steps, and its evaluations on held-out events."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TextIO

from harness.accuracy.classification import Accuracy, class_accuracy

STEPS_FILE, HELD_OUT_FILE = "steps.csv", "held_out.csv"

STEP_COLUMNS = ("step", "events", "sites", "loss", "accuracy", "step_seconds", "seconds", "joules")
"""Columns of the steps; ``seconds`` and ``joules`` are sums from the first step on."""

HELD_OUT_COLUMNS = ("step", "seconds", "joules", "events", "accuracy", "spread")
"""Columns of the evaluations, followed by the accuracy of each class."""


class TrainingTables:
    """Writes the CSV files of a training.

    Parameters
    ----------
    folder : Path
        Folder of the training.
    classes : tuple of str
        Names of the classes.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._paths = {Path(name).stem: folder / name for name in (STEPS_FILE, HELD_OUT_FILE)}
        self._classes = classes
        self._files: dict[str, TextIO] = {}

    def hold(self, lengths: dict[str, int]) -> bool:
        """Return whether the files have at least the given lengths in bytes."""
        return all(
            path.exists() and path.stat().st_size >= lengths.get(name, 0)
            for name, path in self._paths.items()
        )

    def open(self, lengths: dict[str, int]) -> None:
        """Open the files, cut to the lengths of a checkpoint in bytes; empty ones get a header."""
        for name, path in self._paths.items():
            file = path.open("a", newline="")
            self._files[name] = file
            file.truncate(lengths.get(name, 0))
            file.seek(0, os.SEEK_END)
        self._steps = csv.writer(self._files["steps"], lineterminator="\n")
        self._held_out = csv.writer(self._files["held_out"], lineterminator="\n")
        if not lengths:
            self._steps.writerow(STEP_COLUMNS)
            self._held_out.writerow([*HELD_OUT_COLUMNS, *self._classes])

    def add_step(
        self,
        step: int,
        events: int,
        sites: int,
        loss: float,
        accuracy: float,
        step_seconds: float,
        seconds: float,
        joules: float | None,
    ) -> None:
        """Add a row of ``STEP_COLUMNS``."""
        self._steps.writerow(
            [
                step,
                events,
                sites,
                f"{loss:.6g}",
                f"{accuracy:.6f}",
                f"{step_seconds:.6f}",
                f"{seconds:.4f}",
                _joules(joules),
            ]
        )

    def add_evaluation(
        self, step: int, seconds: float, joules: float | None, result: Accuracy
    ) -> None:
        """Add a row of ``HELD_OUT_COLUMNS`` and the accuracy of each class."""
        self._held_out.writerow(
            [
                step,
                f"{seconds:.4f}",
                _joules(joules),
                len(result.events),
                f"{result.mean:.6f}",
                f"{result.std:.6f}",
                *(f"{value:.6f}" for value in class_accuracy(result.confusion)),
            ]
        )
        self._files["held_out"].flush()

    def lengths(self) -> dict[str, int]:
        """Write all rows to the disk and return the length of each file in bytes."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _joules(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
