"""Everything that a training needs to go on bit by bit after its process was killed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step.

    Attributes
    ----------
    plan : dict
        The training it belongs to, as JSON values.
    step : int
        Steps done.
    seconds : float
        Training time so far, without evaluations and checkpoints.
    joules : float or None
        Energy so far, where it is counted.
    network : dict
        Averaged weights: the result.
    latest : dict
        Weights of the last step, from which the training goes on.
    optimiser, scaler : dict
        Their ``state_dict``.
    random : dict
        States of torch's generators by device.
    loader : dict
        `harness.events.TrainingLoader.state`.
    rows : dict
        Length in bytes of each CSV file when the checkpoint was made.
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


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: a reader finds the old one or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(vars(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where there is none yet."""
    if not path.exists():
        return None
    return Checkpoint(**torch.load(path, weights_only=True, map_location="cpu"))


def random_states() -> dict[str, torch.Tensor]:
    """Return the states of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random(states: dict[str, torch.Tensor]) -> None:
    """Set torch's generators to saved states."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
