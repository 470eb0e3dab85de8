"""The files in the folder of a study, one format each."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.events.packed import write_packed
from harness.results import store
from harness.spec.cell import ModelSpec
from harness.study import training_process
from harness.study.definition import Study, read_study, write_definition
from harness.study.plan import PLAN_FILE, Plan, read_plan
from harness.study.predictions import save_predictions
from harness.study.results import read_results
from harness.study.training import CHECKPOINT_FILE, train
from harness.study.training_process import run_training
from harness.study.training_worker import ENTRIES_FILE, write_entries
from harness.study.views import View
from tests.fuzz.format import Format
from tests.fuzz.mutations import Rng, mutate_bytes, mutate_json, mutate_zip, pick
from tests.fuzz.weights import mutate_state
from tests.harness.events.conftest import make_event


def small_plan(folder: Path, steps: int = 2) -> Plan:
    """Return a plan for a few tiny events in a folder."""
    events = View(str(folder / "events.sscnpack"), 16)
    return Plan(
        "sparse 192 px",
        "dense",
        *(events, events),
        batch=2,
        steps=steps,
        evaluate_every=1,
        held_out_events=2,
        model=ModelSpec(filters=1, depth=2, reps=1),
    )


def quiet() -> Console:
    """Return a console without output."""
    return Console(file=io.StringIO())


class _StudyFile(Format):
    """A file of a study; reading copies the other files beside it.

    Attributes
    ----------
    file
        Its path in the folder of the study.
    """

    file: str
    trials = 20

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name on the command line."""
        return f"study-{Path(self.file).stem.replace('_', '-')}"

    def study(self, path: Path) -> Path:
        """Return the folder of a valid study, made on the first call."""
        folder = path.with_name("study")
        if not folder.exists():
            write_definition(Study(folder, "smoke"))
            tiny = [make_event(count, size=16, seed=count) for count in (40, 25, 30, 35)]
            write_packed(path.with_name("events.sscnpack"), tiny)
            place = folder / "training" / "sparse-192-px"
            run_training_here(place, folder / "records.jsonl", small_plan(path.parent))
            chosen = View("sample", 192).open()[:8]
            predicted = [event.labels.astype("int64") % 5 for event in chosen]
            save_predictions(place / "sample-192px.npz", predicted, chosen.sha256, 2)
        return folder

    def write(self, path: Path) -> None:
        """Write a valid file."""
        shutil.copy(self.study(path) / self.file, path)

    def copied(self, path: Path) -> Path:
        """Return a copy of the study with a mutated file."""
        folder = path.with_name("copy")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.study(path), folder)
        shutil.copy(path, folder / self.file)
        return folder

    def read(self, path: Path) -> str:
        """Read the whole study, as the page does."""
        found = read_results(read_study(self.copied(path)))
        numbers = [[curve.events, curve.seconds, curve.has_energy] for curve in found.curves]
        for curve in found.curves:
            curve.evaluation_at(curve.seconds)
            curve.smooth.tail(1)
        missing = list(map(str, found.problems))
        return json.dumps([numbers, [test.accuracy.mean for test in found.tests], missing])


class _JsonFile(_StudyFile):
    def mutate(self, path: Path, rng: Rng) -> None:
        """Change an element, or bytes."""
        if rng.random() < 0.2:
            super().mutate(path, rng)
        else:
            path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), rng)))


class Definition(_JsonFile):
    """The definition of the study."""

    file = "study.json"


class PlanFile(_JsonFile):
    """The plan of a training."""

    file = f"training/sparse-192-px/{PLAN_FILE}"

    def read(self, path: Path) -> str:
        """Read the plan as the training process does, and name its cell."""
        plan, tests = read_plan((self.copied(path) / self.file).parent)
        rates = [plan.rate(step) for step in (1, 2, 10**6)]
        return json.dumps([plan.cell("").name, sorted(tests), rates])


class EntriesFile(_JsonFile):
    """The entries of the record of a training."""

    always_read = True
    file = f"training/sparse-192-px/{ENTRIES_FILE}"

    def read(self, path: Path) -> str:
        """Repeat the training's command, whose record is missing: it is written again."""
        folder = self.copied(path)
        out = folder / "records.jsonl"
        out.unlink()
        run_training_here((folder / self.file).parent, out, small_plan(path.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (record,) = store.records([out])
        return str(record["outcome"])


class Checkpoint(_StudyFile):
    """A checkpoint with other entries; the training continues, or starts again."""

    always_read = True
    trials = 6
    file = f"training/sparse-192-px/{CHECKPOINT_FILE}"

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change entries or members of the archive."""
        if rng.random() < 0.3:
            path.write_bytes(mutate_zip(path.read_bytes(), rng))
            return
        state: dict[Any, Any] = torch.load(path, weights_only=True)
        sha256 = state.pop("sha256")
        place = pick(rng, (None, "network", "latest", "optimiser", "rows", "random", "plan"))
        if place is None:
            state = mutate_state({str(name): value for name, value in state.items()}, rng)
        elif place in ("optimiser", "rows", "plan"):
            state[place] = mutate_json(state[place], rng)
        else:
            state[place] = mutate_state(state[place], rng)
        torch.save(state | {"sha256": sha256}, path)

    def read(self, path: Path) -> str:
        """Continue the training to its end."""
        place = (self.copied(path) / self.file).parent
        trained = train(small_plan(path.parent, steps=3), place, lambda progress: None)
        digest = hashlib.sha256()
        for name, value in trained.network.items():
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()


class CheckpointBytes(Checkpoint):
    """A checkpoint with changed bytes: the weights do not depend on the damage."""

    checked = True
    name = "study-checkpoint-bytes"  # type: ignore[assignment]

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change bytes."""
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


class _Table(_StudyFile):
    """A CSV file: changed fields and bytes."""

    always_read = True

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change a field, or bytes."""
        if rng.random() < 0.3:
            super().mutate(path, rng)
            return
        rows = [line.split(",") for line in path.read_text().splitlines()]
        row = pick(rng, rows)
        values = ("", "text", "nan", "inf", "-1", "1e999", "9" * 400, '"', "0", "a,b", "1\n2")
        row[int(rng.integers(len(row)))] = pick(rng, values)
        path.write_text("\n".join(map(",".join, rows)) + "\n")


class Steps(_Table):
    """The steps of a training."""

    file = "training/sparse-192-px/steps.csv"


class HeldOut(_Table):
    """The evaluations of a training."""

    file = "training/sparse-192-px/held_out.csv"


class Predictions(_StudyFile):
    """The predictions of a test."""

    always_read = True
    file = "training/sparse-192-px/sample-192px.npz"

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change members of the archive, or bytes."""
        if rng.random() < 0.5:
            super().mutate(path, rng)
        else:
            path.write_bytes(mutate_zip(path.read_bytes(), rng))


def run_training_here(folder: Path, out: Path, plan: Plan) -> None:
    """Run a training in this process instead of a child, for speed."""

    def here(folder: Path, python: str) -> int:
        trained = train(plan, folder, lambda progress: None)
        entries = {"outcome": "ok", "reason": "", "sha256": "", "sites": 5}
        more = {"host_seconds": [0.1, 0.1], "stop": "samples", "versions": {"torch": "2"}}
        numbers = {"name": plan.name, "steps": trained.step, "events": 4, "seconds": 0.2}
        loss = {"joules": None, "loss": 1.0, "accuracy": 0.5}
        write_entries(folder, entries | more | {"training": numbers | loss})
        return 0

    child, training_process._run_child = training_process._run_child, here
    try:
        run_training(folder, plan, {"sample-192px": (plan.held_out, 4)}, out, quiet())
    finally:
        training_process._run_child = child


STUDY_FILES = (
    Definition(),
    PlanFile(),
    EntriesFile(),
    Checkpoint(),
    CheckpointBytes(),
    Steps(),
    HeldOut(),
    Predictions(),
)
