"""The training loop: one for all engines, with checkpoints from which it goes on bit by bit."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends import network, registry, weights
from backends.arithmetic import autocast
from backends.contract import Backend, SparseBatch
from backends.loss import event_cross_entropy
from backends.uresnet import UResNetConfig
from harness.errors import BadInput
from harness.events import Event, EventSet, TrainingLoader, collate
from harness.study import checkpoint
from harness.study import optimiser as optimisers
from harness.study.accuracy import Accuracy, class_accuracy, summarise
from harness.study.average import WeightAverage
from harness.study.checkpoint import Checkpoint
from harness.study.plan import Plan
from harness.study.views import CLASS_NAMES

STEP_COLUMNS = ("step", "events", "sites", "loss", "accuracy", "step_seconds", "seconds", "joules")
"""Columns of ``steps.csv``; seconds and joules count from the first step."""

CHECKPOINT_SECONDS = 60.0


class Diverged(RuntimeError):
    """The loss is no number any more: these weights are of no use."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for people.

    Attributes
    ----------
    step : int
        Steps done.
    fraction : float
        Of the whole training, by the limit that will end it.
    left : float
        Expected seconds of training left.
    loss, accuracy : float
        Means over the last `_RECENT` steps.
    """

    step: int
    fraction: float
    left: float
    loss: float
    accuracy: float


Report = Callable[[Progress], None]
Joules = Callable[[], float | None]

_RECENT = 50


@dataclass(frozen=True)
class Learner:
    """A network on its engine.

    Attributes
    ----------
    network : Module
        As `backends.network.build` makes it.
    backend : Backend
    classes : int
        Its outputs.
    """

    network: Any
    backend: Backend
    classes: int


def learner_of(plan: Plan) -> Learner:
    """Set the plan's engine up and build its network with the initial weights of the seed."""
    model = plan.model
    config = UResNetConfig(model.filters, model.depth, model.reps, model.classes)
    dim = plan.events.dim
    backend = registry.load(
        plan.backend,
        dim=dim,
        device=plan.device,
        precision=plan.precision,
        options=dict(plan.options),
    )
    built = network.build(backend, config).to(plan.device)
    network.reset(built, weights.initial(config, dim, plan.seed))
    return Learner(built, backend, model.classes)


def train(
    plan: Plan,
    folder: Path,
    report: Report,
    *,
    learner: Learner | None = None,
    clock: Callable[[], float] = perf_counter,
    joules: Joules = lambda: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Checkpoint:
    """Train, or go on with a training whose process was killed.

    Parameters
    ----------
    plan : Plan
    folder : Path
        Receives ``checkpoint.pt``, ``steps.csv`` and ``held_out.csv``. A checkpoint that is there
        already must be of the same plan; the training continues from it exactly: the same seed
        gives the same weights, bit by bit, whether or not it was interrupted, on engines that
        compute the same bits each time.
    report : callable
        Called after every step.
    learner : Learner, optional
        As `learner_of` makes it, for a caller who goes on to use it: trained in place, it has the
        averaged weights in the end.
    clock : callable
        Seconds from some origin.
    joules : callable
        Energy counter, or None where there is none.
    checkpoint_seconds : float
        Training time between checkpoints.

    Returns
    -------
    Checkpoint
        The final one.

    Raises
    ------
    BadInput
        If the folder holds the training of another plan.
    Diverged
        If the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    learner = learner_of(plan) if learner is None else learner
    learning = learner.network
    optimiser = optimisers.make(plan.optimiser, learning, plan.learning_rate)
    scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
    average = WeightAverage(learning, plan.average)
    held_out = _first(plan.held_out.open(), plan.held_out_events)
    tables = _Tables(folder, CLASS_NAMES[plan.model.classes])

    with ExitStack() as stack:
        stack.callback(tables.close)
        loader = stack.enter_context(TrainingLoader(plan.events.open(), plan.batch, plan.seed))
        saved = checkpoint.load(path)
        if saved is not None:
            _check_plan(saved, plan, folder)
            learning.load_state_dict(saved.latest)
            average.restore(saved.network)
            optimiser.load_state_dict(saved.optimiser)
            scaler.load_state_dict(saved.scaler)
            checkpoint.restore_random(saved.random)
            loader.restore(saved.loader)
        tables.open(saved.rows if saved else {})
        state = _State(saved.step, saved.seconds, saved.joules) if saved else _State()

        def save() -> Checkpoint:
            made = Checkpoint(
                plan.to_json(),
                state.step,
                state.seconds,
                state.joules,
                average.state(),
                learning.state_dict(),
                optimiser.state_dict(),
                scaler.state_dict(),
                checkpoint.random_states(),
                loader.state(),
                tables.lengths(),
            )
            checkpoint.save(path, made)
            return made

        recent: list[tuple[float, float]] = []
        unsaved = 0.0
        learning.train()
        while not _finished(plan, state):
            began, energy = clock(), joules()
            batch = next(loader)
            for group in optimiser.param_groups:
                group["lr"] = plan.rate(state.step + 1)
            loss, accuracy = step(learner, optimiser, scaler, batch)
            average.update(state.step)
            took, used = clock() - began, joules()
            state.advance(took, None if energy is None or used is None else used - energy)
            unsaved += took
            if not math.isfinite(loss):
                raise Diverged(f"{plan.name}: the loss became {loss} at step {state.step}")
            tables.steps.writerow(
                [
                    state.step,
                    state.step * plan.batch,
                    len(batch["sites"]),
                    f"{loss:.6g}",
                    f"{accuracy:.6f}",
                    f"{took:.6f}",
                    f"{state.seconds:.4f}",
                    "" if state.joules is None else f"{state.joules:.3f}",
                ]
            )
            recent = [*recent[1 - _RECENT :], (loss, accuracy)]
            report(_progress(plan, state, recent))
            if plan.evaluate_every and state.step % plan.evaluate_every == 0:
                with average.shown():
                    result = evaluate(learner, held_out, plan.batch)
                learning.train()
                tables.evaluation(state, result)
            if unsaved >= checkpoint_seconds:
                save()
                unsaved = 0.0
        done = save()
        average.show()
        return done


def step(
    learner: Learner, optimiser: torch.optim.Optimizer, scaler: Any, batch: dict[str, Any]
) -> tuple[float, float]:
    """Take one step of the optimiser.

    Returns
    -------
    loss : float
        The study's: the sum over events of the mean cross entropy of their voxels.
    accuracy : float
        Mean over events of the nonzero accuracy, before the step.
    """
    sparse = _sparse(batch, learner.backend.device)
    optimiser.zero_grad(set_to_none=True)
    logits = _logits(learner, sparse)
    assert sparse.labels is not None
    loss = event_cross_entropy(logits, sparse.labels, sparse.sites[:, 0], sparse.batch_size)
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    predicted = logits.detach().argmax(1).cpu().numpy()
    truths, predictions = _by_event(batch, batch["labels"]), _by_event(batch, predicted)
    return float(loss.detach()), summarise(truths, predictions, learner.classes).mean


def predict(learner: Learner, events: Sequence[Event], batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield the predicted class of every voxel, event by event; empty events give empty arrays.

    The network is left in evaluation mode: its norms use the statistics of the training.
    """
    learner.network.eval()
    for start in range(0, len(events), batch):
        some = [events[i] for i in range(start, min(start + batch, len(events)))]
        joined = collate(some)
        if not len(joined["sites"]):
            yield from (np.zeros(0, np.int64) for _ in some)
            continue
        with torch.no_grad():
            logits = _logits(learner, _sparse(joined, learner.backend.device))
        yield from _by_event(joined, logits.argmax(1).cpu().numpy())


def evaluate(learner: Learner, events: EventSet, batch: int) -> Accuracy:
    """Return how well a network classifies events that it has not learnt from."""
    truths = [event.labels.astype(np.int64) for event in events]
    return summarise(truths, list(predict(learner, events, batch)), learner.classes)


def _sparse(batch: dict[str, Any], device: str) -> SparseBatch:
    arrays = (np.ascontiguousarray(batch[name]) for name in ("sites", "features", "labels"))
    sites, features, labels = map(torch.from_numpy, arrays)
    whole = SparseBatch(sites, features, labels, batch["spatial_size"], batch["batch_size"])
    return whole.to(device)


def _logits(learner: Learner, batch: SparseBatch) -> Tensor:
    backend = learner.backend
    with autocast(backend.precision, backend.device):
        return learner.network(
            learner.network.tensor(
                batch.sites, batch.features, batch.spatial_size, batch.batch_size
            )
        )


def _by_event(batch: dict[str, Any], values: NDArray) -> list[NDArray]:
    """Split an array of all sites into one array an event."""
    edges = np.searchsorted(batch["sites"][:, 0], np.arange(1, batch["batch_size"]))
    return np.split(values, edges)


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    joules: float | None = None

    def advance(self, seconds: float, joules: float | None) -> None:
        self.step += 1
        self.seconds += seconds
        if joules is not None:
            self.joules = (self.joules or 0.0) + joules


def _finished(plan: Plan, state: _State) -> bool:
    return state.step >= plan.steps or (0 < plan.seconds <= state.seconds)


def _progress(plan: Plan, state: _State, recent: list[tuple[float, float]]) -> Progress:
    fraction = state.step / plan.steps
    if plan.seconds:
        fraction = max(fraction, state.seconds / plan.seconds)
    left = state.seconds * (1 / fraction - 1) if fraction < 1 else 0.0
    loss, accuracy = np.mean(recent, axis=0).tolist()
    return Progress(state.step, min(fraction, 1.0), left, loss, accuracy)


def _first(events: EventSet, count: int) -> EventSet:
    return events[:count] if count else events


def _check_plan(saved: Checkpoint, plan: Plan, folder: Path) -> None:
    """Refuse to mix two trainings; how long one goes on may change, and where its events lie."""
    both = plan, Plan.from_json(saved.plan)
    ours, theirs = (one.anywhere().to_json() for one in both)
    for values in (ours, theirs):
        for limit in ("steps", "seconds"):
            values.pop(limit)
    if ours != theirs:
        changed = next(key for key in ours if ours[key] != theirs.get(key))
        raise BadInput(
            f"{folder} holds a training with another {changed}; give another folder or remove it"
        )


class _Tables:
    """The CSV files of a training, cut back to where its checkpoint was made."""

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._paths = {name: folder / f"{name}.csv" for name in ("steps", "held_out")}
        self._classes = classes
        self._files: dict[str, TextIO] = {}

    def open(self, lengths: dict[str, int]) -> None:
        """Open the files at the given lengths in bytes; new ones get their header."""
        for name, path in self._paths.items():
            file = path.open("a", newline="")
            file.truncate(lengths.get(name, 0))
            file.seek(0, os.SEEK_END)
            self._files[name] = file
        self.steps = csv.writer(self._files["steps"], lineterminator="\n")
        self._held_out = csv.writer(self._files["held_out"], lineterminator="\n")
        if not lengths:
            self.steps.writerow(STEP_COLUMNS)
            self._held_out.writerow(
                ["step", "seconds", "joules", "events", "accuracy", "spread", *self._classes]
            )

    def evaluation(self, state: _State, result: Accuracy) -> None:
        """Add an evaluation on held-out events."""
        self._held_out.writerow(
            [
                state.step,
                f"{state.seconds:.4f}",
                "" if state.joules is None else f"{state.joules:.3f}",
                len(result.events),
                f"{result.mean:.6f}",
                f"{result.std:.6f}",
                *(f"{value:.6f}" for value in class_accuracy(result.confusion)),
            ]
        )
        self._files["held_out"].flush()

    def lengths(self) -> dict[str, int]:
        """Bring everything to the disk and return the length of each file."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
