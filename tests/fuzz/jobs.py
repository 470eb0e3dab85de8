"""Jobs of workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.events.packed import write_packed
from harness.run.job import Job, read_job
from harness.run.sampling import StopRule
from harness.run.worker import measure_cell
from harness.spec.cell import Cell, ModelSpec
from tests.fuzz.format import Format
from tests.fuzz.mutations import Rng, mutate_json, pick
from tests.harness.events.conftest import make_event

SECONDS = 0.05
"""Longest sampling and warm-up, whatever a mutated job asks for."""

OTHERS: dict[str, tuple[Any, ...]] = {
    "phase": ("step", "submanifold", "ordinary", "map", "input-gradient"),
    "map": ("first", "warm"),
    "layer": ("submanifold-0", "strided-1", "inverse-0", "strided-9"),
    "precision": ("fp64", "bf16", "fp16"),
    "dim": (2,),
    "batch": (2, 3),
    "size": (192, 100),
    "backend": ("dense", "nonesuch", "fvdb"),
    "device": ("cuda",),
}
"""Other values of a cell's fields, which are valid by themselves."""


class Jobs(Format):
    """A job: fields of other types, sizes and meanings, and changed bytes."""

    name = "jobs"
    trials = 20

    def write(self, path: Path) -> None:
        """Write a small valid job, and its events."""
        events = path.with_name("events.sscnpack")
        write_packed(events, [make_event(count, size=16, seed=count) for count in (40, 25)])
        model = ModelSpec(filters=2, depth=2, reps=1)
        cell = Cell("fuzz", "sscn", 16, 1, "forward", "cold", model=model)
        rule = StopRule(spread=0.5, least=3, most=3, budget=SECONDS)
        job = Job(cell, str(events), rule, warm_up=SECONDS, threads=1)
        path.write_text(json.dumps(job.to_json()))

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change fields or bytes."""
        kind = rng.random()
        if kind < 0.1:
            super().mutate(path, rng)
            return
        values = json.loads(path.read_text())
        if kind < 0.7:
            values = mutate_json(values, rng)
        else:
            for name in {pick(rng, OTHERS) for _ in range(2)}:
                values["cell"][name] = pick(rng, OTHERS[name])
        path.write_text(json.dumps(values))

    def read(self, path: Path) -> str:
        """Measure the job with bounded durations, without its limit for this process."""
        job = read_job(path)
        rule = replace(job.rule, most=3, budget=min(job.rule.budget, SECONDS))
        bounded = replace(
            job, rule=rule, warm_up=min(job.warm_up, SECONDS), threads=1, memory_bytes=0
        )
        record = measure_cell(bounded)
        json.dumps(record, allow_nan=False)
        if record["outcome"] == "crashed":
            raise AssertionError(record["reason"])
        return str(record["outcome"])
