"""The training loop, common to all engines, with checkpoints for an exact continuation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from backends.loss import event_cross_entropy
from harness.accuracy.classification import measure_accuracy
from harness.errors import BadInput
from harness.events import TrainingLoader
from harness.events.classes import CLASS_NAMES
from harness.study.average import WeightAverage
from harness.study.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    load_checkpoint,
    random_states,
    restore_random_states,
    restoring,
    save_checkpoint,
)
from harness.study.model import Model, build_model, evaluate, sparse_batch, split_by_event
from harness.study.optimiser import make_optimiser
from harness.study.plan import Plan
from harness.study.training_tables import TrainingTables

CHECKPOINT_FILE = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0


class Diverged(RuntimeError):
    """A training whose loss is no longer finite."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training, for display.

    Attributes
    ----------
    step : int
        Number of completed steps.
    fraction : float
        Completed fraction of the training, by the limit that will end it.
    left : float
        Expected remaining training time in seconds.
    loss, accuracy : float
        Means over the last steps, at most ``_RECENT`` of them.
    """

    step: int
    fraction: float
    left: float
    loss: float
    accuracy: float


Report = Callable[[Progress], None]
Joules = Callable[[], float | None]

_RECENT = 50


def train(
    plan: Plan,
    folder: Path,
    report: Report,
    *,
    model: Model | None = None,
    clock: Callable[[], float] = perf_counter,
    joules: Joules = lambda: None,
    say: Callable[[str], None] = lambda text: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Checkpoint:
    """Train a network, or continue the training in a folder.

    Parameters
    ----------
    plan : Plan
        The training.
    folder : Path
        Folder for the checkpoint and the CSV files. A present checkpoint must be of the same plan;
        the training continues from it. On engines with deterministic results, the weights do not
        depend on interruptions, bit by bit. A damaged checkpoint is ignored: the training starts
        again.
    report : callable
        Called with the progress after every step.
    model : Model, optional
        As ``harness.study.model.build_model`` returns it. It is trained in place and has the
        averaged weights afterwards.
    clock : callable
        Returns a time in seconds.
    joules : callable
        Returns an energy in joules, or None without an energy counter.
    say : callable
        Called with a sentence if a damaged checkpoint is ignored.
    checkpoint_seconds : float
        Training time between checkpoints in seconds.

    Returns
    -------
    Checkpoint
        The last checkpoint.

    Raises
    ------
    BadInput
        If the folder holds the training of another plan.
    Diverged
        If the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT_FILE
    model = build_model(plan) if model is None else model
    network = model.network
    optimiser = make_optimiser(plan.optimiser, network, plan.learning_rate)
    scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
    average = WeightAverage(network, plan.average)
    held_out = plan.held_out.open()
    if plan.held_out_events:
        held_out = held_out[: plan.held_out_events]
    tables = TrainingTables(folder, CLASS_NAMES[plan.model.classes])

    with ExitStack() as stack:
        stack.callback(tables.close)
        loader = stack.enter_context(
            TrainingLoader(plan.events.open(), plan.batch, plan.seed, inputs=plan.model.inputs)
        )
        saved = _saved(path, tables, say)
        if saved is not None:
            initial, first = copy.deepcopy(network.state_dict()), loader.state()
            try:
                with restoring(path):
                    _check_plan(saved, plan, folder)
                    network.load_state_dict(saved.latest)
                    average.restore(saved.network)
                    optimiser.load_state_dict(saved.optimiser)
                    scaler.load_state_dict(saved.scaler)
                    loader.restore(saved.loader)
                    restore_random_states(saved.random)
            except DamagedCheckpoint as damage:
                say(f"{damage}; the training starts again")
                saved = None
                network.load_state_dict(initial)
                average = WeightAverage(network, plan.average)
                optimiser = make_optimiser(plan.optimiser, network, plan.learning_rate)
                loader.restore(first)
        tables.open(saved.rows if saved else {})
        state = _State(saved.step, saved.seconds, saved.joules) if saved else _State()

        def save() -> Checkpoint:
            made = Checkpoint(
                plan.to_json(),
                state.step,
                state.seconds,
                state.joules,
                average.state(),
                network.state_dict(),
                optimiser.state_dict(),
                scaler.state_dict(),
                random_states(),
                loader.state(),
                tables.lengths(),
            )
            save_checkpoint(path, made)
            return made

        recent: list[tuple[float, float]] = []
        unsaved = 0.0
        network.train()
        while not _finished(plan, state):
            start, energy = clock(), joules()
            batch = next(loader)
            for group in optimiser.param_groups:
                group["lr"] = plan.rate(state.step + 1)
            loss, accuracy = training_step(model, optimiser, scaler, batch)
            average.update(state.step)
            elapsed, used = clock() - start, joules()
            state.advance(elapsed, None if energy is None or used is None else used - energy)
            unsaved += elapsed
            if not math.isfinite(loss):
                raise Diverged(f"{plan.name}: the loss became {loss} at step {state.step}")
            tables.add_step(
                state.step,
                state.step * plan.batch,
                len(batch["sites"]),
                loss,
                accuracy,
                elapsed,
                state.seconds,
                state.joules,
            )
            recent = [*recent[1 - _RECENT :], (loss, accuracy)]
            report(_progress(plan, state, recent))
            if plan.evaluate_every and state.step % plan.evaluate_every == 0:
                with average.applied():
                    result = evaluate(model, held_out, plan.batch)
                network.train()
                tables.add_evaluation(state.step, state.seconds, state.joules, result)
            if unsaved >= checkpoint_seconds:
                save()
                unsaved = 0.0
        last = save()
        average.apply()
        return last


def training_step(
    model: Model,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: dict[str, Any],
) -> tuple[float, float]:
    """Take one step of the optimiser.

    Returns
    -------
    loss : float
        Loss of the 2018 study: the sum over events of the mean cross entropy of their voxels.
    accuracy : float
        Mean over events of the nonzero accuracy, before the step.
    """
    sparse = sparse_batch(batch, model.backend.device)
    optimiser.zero_grad(set_to_none=True)
    logits = model.logits(sparse)
    assert sparse.labels is not None
    loss = event_cross_entropy(logits, sparse.labels, sparse.sites[:, 0], sparse.batch_size)
    torch.autograd.backward(scaler.scale(loss))
    scaler.step(optimiser)
    scaler.update()
    predicted = logits.detach().argmax(1).cpu().numpy()
    truths, predictions = split_by_event(batch, batch["labels"]), split_by_event(batch, predicted)
    return float(loss.detach()), measure_accuracy(truths, predictions, model.classes).mean


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


def _saved(path: Path, tables: TrainingTables, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to continue from; None if there is none, or it is damaged."""
    try:
        saved = load_checkpoint(path)
        if saved is not None and not tables.hold(saved.rows):
            raise DamagedCheckpoint(
                f"the CSV files beside {path} are shorter than at the checkpoint"
            )
    except DamagedCheckpoint as damage:
        say(f"{damage}; the training starts again")
        return None
    return saved


def _check_plan(saved: Checkpoint, plan: Plan, folder: Path) -> None:
    """Raise if a checkpoint is damaged or of another plan, apart from its length and folders."""
    try:
        both = plan, Plan.from_json(saved.plan)
    except BadInput:
        raise DamagedCheckpoint(f"the checkpoint in {folder} is damaged") from None
    ours, theirs = (one.without_folders().to_json() for one in both)
    for values in (ours, theirs):
        for limit in ("steps", "seconds", "cool_down"):
            values.pop(limit)
    if ours != theirs:
        changed = next(key for key in ours if ours[key] != theirs.get(key))
        raise BadInput(
            f"{folder} holds a training with another {changed}; give another folder or remove it"
        )
