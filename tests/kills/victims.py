"""The commands that are disturbed, and what an undisturbed one leaves."""

from __future__ import annotations

import hashlib
import sys
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import h5py

from harness.results import store
from harness.spec.cell import Cell
from harness.study.checkpoint import load_checkpoint


class Victim(ABC):
    """One command.

    Attributes
    ----------
    name
        On the command line.
    roles
        The processes that are ended: ``parent``, ``worker`` (any other) or ``reference``.
    """

    name: str
    roles: tuple[str, ...] = ("parent", "worker")

    def prepare(self, folder: Path) -> None:
        """Write the input of the command."""
        return

    @abstractmethod
    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line after the interpreter, the first time or again."""

    @abstractmethod
    def result(self, folder: Path) -> Any:
        """Return what does not depend on disturbances."""

    def command(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        return [sys.executable, *self.words(folder, again=again)]


class Run(Victim):
    """A run of two cells, continued by ``--resume``."""

    name = "run"
    roles = ("parent", "worker", "reference")

    def prepare(self, folder: Path) -> None:
        """Write a file of one small event."""
        from harness.events.native import EventWriter
        from tests.harness.events.conftest import make_event

        with EventWriter(folder / "events.h5", 192, 3, "kills") as writer:
            writer.append(make_event(200, 192))

    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        words = "-m harness run inference --batch 1 --backend sscn --budget 0.05 --threads 1"
        more = ["--resume"] if again else []
        files = ["--events", str(folder / "events.h5"), "--out", str(folder / "run.jsonl")]
        return [*words.split(), *files, *more]

    def result(self, folder: Path) -> Any:
        """Return the cells, rounds and outcomes."""
        return records(folder / "run.jsonl")


class Simulate(Victim):
    """A simulation, repeated from its start."""

    name = "simulate"

    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        words = "-m harness events simulate --size 64 --count 40 --seed 7 --processes 2 --out"
        return [*words.split(), str(folder / "events.h5")]

    def result(self, folder: Path) -> Any:
        """Return the hash of the file."""
        return hashlib.sha256((folder / "events.h5").read_bytes()).hexdigest()


class StudyVictim(Victim):
    """A study of one short training and one cell, continued by the same command."""

    name = "study"
    roles = ("parent", "worker", "reference")

    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        return ["-m", "tests.kills.tiny_study", str(folder / "study")]

    def result(self, folder: Path) -> Any:
        """Return the records, and the hashes of the events and of the trained weights."""
        study = folder / "study"
        saved = load_checkpoint(study / "training" / "sparse-16-px" / "checkpoint.pt")
        assert saved is not None
        weights = hashlib.sha256()
        for value in saved.network.values():
            weights.update(value.numpy().tobytes())
        events = sorted((study / "events").rglob("*.h5"))
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in events]
        assert (study / "index.html").exists()
        return [records(study / "records.jsonl"), saved.step, weights.hexdigest(), hashes]


class Train(Victim):
    """A training of some steps on a file of events, continued by the same command."""

    name = "train"

    def prepare(self, folder: Path) -> None:
        """Write the events."""
        from harness.events.native import EventWriter
        from tests.harness.events.conftest import make_event

        with EventWriter(folder / "events.h5", 32, 3, "kills") as writer:
            for seed in range(8):
                writer.append(make_event(60, 32, seed))

    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        events = str(folder / "events.h5")
        words = ["-m", "harness", "train", "--events", events, "--held-out", events]
        return [*words, "--batch", "4", "--steps", "12", "--out", str(folder / "training")]

    def result(self, folder: Path) -> Any:
        """Return the records and the hashes of the weights."""
        import numpy as np

        with np.load(folder / "training" / "weights.npz") as weights:
            hashes = {n: hashlib.sha256(weights[n].tobytes()).hexdigest() for n in weights.files}
        return [records(folder / "training" / "records.jsonl"), hashes]


class Predict(Victim):
    """A prediction of sixty events, continued by the same command."""

    name = "predict"

    def prepare(self, folder: Path) -> None:
        """Write the events and random weights of a small network."""
        import numpy as np

        from backends import weights
        from backends.uresnet import UResNetConfig
        from harness.events.native import EventWriter
        from tests.harness.events.conftest import make_event

        values = weights.initial(UResNetConfig(4, 2, 1, 5), 3)
        np.savez(folder / "small.npz", **{name: value.numpy() for name, value in values.items()})
        with EventWriter(folder / "events.h5", 192, 3, "kills") as writer:
            for seed in range(60):
                writer.append(make_event(200, 192, seed))

    def words(self, folder: Path, *, again: bool) -> list[str]:
        """Return the command line."""
        files = ["--weights", str(folder / "small.npz"), "--out", str(folder / "labels.h5")]
        return ["-m", "harness", "predict", str(folder / "events.h5"), "--batch", "1", *files]

    def result(self, folder: Path) -> Any:
        """Return the hashes of the datasets; the weights are named by a hash with their date."""
        with h5py.File(folder / "labels.h5") as file:
            return {name: hashlib.sha256(file[name][:].tobytes()).hexdigest() for name in file}


def records(path: Path) -> Any:
    """Return cells, rounds and outcomes of a file of records, all lines of which are valid."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(store.records([path]))
    return sorted(
        [Cell.from_json(record["cell"]).name, record.get("round", 0), record["outcome"]]
        for record in found
    )


VICTIMS: tuple[Victim, ...] = (Run(), Simulate(), StudyVictim(), Train(), Predict())
"""Add a command here to have it disturbed."""
