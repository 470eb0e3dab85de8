"""Checkpoints: the complete state of a training, to continue it with identical results."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.errors import BadInput

_DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.PickleError),
    *(AttributeError, IndexError, OverflowError),
)


class DamagedCheckpoint(RuntimeError):
    """A checkpoint that cannot be read, or does not fit to the tables beside it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step.

    Attributes
    ----------
    plan : dict
        Plan of the training as JSON values.
    step : int
        Number of completed steps.
    seconds : float
        Training time so far in seconds, without evaluations and checkpoints.
    joules : float or None
        Energy so far; None without an energy counter.
    network : dict
        State dict with the averaged weights, the result of the training.
    latest : dict
        State dict with the weights of the last step, from which the training continues.
    optimiser, scaler : dict
        State dicts of the optimiser and the gradient scaler.
    random : dict
        States of torch's random generators by device.
    loader : dict
        ``harness.events.TrainingLoader.state``.
    rows : dict
        Length in bytes of each CSV file at the time of the checkpoint.
    """

    plan: dict[str, Any]
    step: int
    seconds: float
    joules: float | None
    network: dict[str, Any]
    latest: dict[str, Any]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    random: dict[str, torch.Tensor]
    loader: dict[str, int]
    rows: dict[str, int]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the previous one is replaced as a whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(vars(checkpoint) | {"sha256": _digest(vars(checkpoint))}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; return None if there is none.

    Raises
    ------
    DamagedCheckpoint
        If the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        values = torch.load(path, weights_only=True, map_location="cpu")
        sha256 = values.pop("sha256", None)  # files of earlier versions have none
        if sha256 is not None and sha256 != _digest(values):
            raise ValueError("the checksum does not fit")
        return Checkpoint(**values)
    except _DAMAGE:
        raise DamagedCheckpoint(f"{path} is damaged") from None


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Raise ``DamagedCheckpoint`` if the parts of a checkpoint do not fit the training."""
    try:
        yield
    except BadInput:
        raise
    except _DAMAGE:
        raise DamagedCheckpoint(f"{path} does not fit this training") from None


def _digest(value: Any) -> str:
    """Return the SHA-256 of nested values and tensors."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        found.update(f"{whole.dtype} {tuple(whole.shape)}".encode())
        found.update(whole.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for name, each in value.items():
            found.update(f"{name!r}:".encode())
            _add(found, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _add(found, each)
        found.update(f"{len(value)};".encode())
    else:
        found.update(f"{type(value).__name__} {value!r};".encode())


def random_states() -> dict[str, torch.Tensor]:
    """Return the states of torch's random generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, torch.Tensor]) -> None:
    """Set torch's random generators to saved states."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
