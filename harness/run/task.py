"""Tasks: jobs with the round, the engine source and the interpreter that they are measured with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.run.job import Job
from harness.run.source import EngineSource


@dataclass(frozen=True)
class Task:
    """One cell to measure in one round.

    Attributes
    ----------
    job : Job
        The cell, and how to measure it.
    round : int
        The round of the run, from 0.
    source : EngineSource
        The engines to measure.
    python : str
        The interpreter.
    timeout : float
        Longest time to wait for one answer of the worker, in seconds.
    """

    job: Job
    round: int
    source: EngineSource
    python: str = sys.executable
    timeout: float = 900.0


class ProgressListener(Protocol):
    """Receives the samples of a run as they are taken."""

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """Receive all samples of a task so far, in seconds."""
        ...
