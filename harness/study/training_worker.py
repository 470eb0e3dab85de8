"""The process of a training: trains and tests one network, and writes the entries of its record.

Everything is written into the folder of the training. The process ends when its parent ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console

from harness.instruments import machine
from harness.instruments.energy import EnergyCounter, NvmlEnergy, RaplEnergy
from harness.instruments.gpu import NoGpu, find_device, open_nvml
from harness.study.checkpoint import Checkpoint
from harness.study.live import LiveTraining
from harness.study.model import Model, build_model, predict
from harness.study.plan import Plan, Tests, read_plan
from harness.study.predictions import save_predictions, step_of
from harness.study.training import Diverged, train
from harness.study.training_tables import STEPS_FILE

ENTRIES_FILE = "entries.json"

_LAST_STEPS = 100
"""Steps of the loss and the accuracy in the record."""


def work(folder: Path, console: Console) -> None:
    """Train and test the network of the plan in a folder.

    Raises
    ------
    BadInput
        If the folder holds no plan or the training of another plan.
    """
    plan, tests = read_plan(folder)
    end_with_parent()
    model = build_model(plan)
    counter: EnergyCounter | None = _gpu_energy() if plan.device == "cuda" else RaplEnergy()
    joules = counter.joules if counter is not None else lambda: None
    with LiveTraining(plan.name, console) as live:
        try:
            trained = train(plan, folder, live, model=model, joules=joules, say=live.say)
        except Diverged as error:
            write_entries(folder, {"outcome": "wrong", "reason": str(error)})
            return
    _predict(folder, plan, tests, model, trained.step, console)
    write_entries(folder, _entries(folder, plan, model, trained))


def end_with_parent() -> None:
    """End this process when its standard input is closed, as by the death of its parent."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def write_entries(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the entries of the record; the file is replaced as a whole."""
    part = folder / f"{ENTRIES_FILE}.part"
    with part.open("w") as file:
        file.write(json.dumps(entries) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / ENTRIES_FILE)


def read_entries(folder: Path) -> dict[str, Any] | None:
    """Read the entries of the record; return None if they are missing or damaged."""
    try:
        entries = orjson.loads((folder / ENTRIES_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(entries, dict) or not isinstance(entries.get("outcome"), str):
        return None
    return {"reason": ""} | entries


def _predict(
    folder: Path, plan: Plan, tests: Tests, model: Model, step: int, console: Console
) -> None:
    """Write the predictions of all tests that have none of this step."""
    for name, (view, count) in tests.items():
        path = folder / f"{name}.npz"
        if step_of(path) == step:
            continue
        console.print(f"{plan.name}: predicting {name}", highlight=False)
        events = view.open()[:count]
        predicted = list(predict(model, events, min(plan.batch, 4)))
        save_predictions(path, predicted, events.sha256, step)


def _entries(folder: Path, plan: Plan, model: Model, trained: Checkpoint) -> dict[str, Any]:
    """Return the entries of the record of a complete training."""
    steps = np.genfromtxt(folder / STEPS_FILE, delimiter=",", names=True, encoding="utf-8")
    steps = np.atleast_1d(steps)
    last = steps[-min(len(steps), _LAST_STEPS) :]
    events = trained.step * plan.batch
    return {
        "outcome": "ok",
        "reason": "",
        "sha256": plan.events.open().sha256,
        "sites": int(np.median(steps["sites"])),
        "host_seconds": [round(float(value), 6) for value in steps["step_seconds"]],
        "stop": "budget" if plan.seconds and trained.seconds >= plan.seconds else "samples",
        "energy_joules": None if trained.joules is None else trained.joules / events,
        "precision_readback": model.backend.precision_readback(),
        "machine": _machine(plan.device),
        "versions": machine.versions(),
        "training": {
            "name": plan.name,
            "steps": trained.step,
            "events": events,
            "seconds": round(trained.seconds, 3),
            "joules": trained.joules,
            "loss": round(float(last["loss"].mean()), 6),
            "accuracy": round(float(last["accuracy"].mean()), 6),
        },
    }


def _machine(device: str) -> dict[str, Any]:
    import torch

    found = machine.facts() | {"threads": torch.get_num_threads()}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def _gpu_energy() -> EnergyCounter | None:
    import torch

    try:
        nvml = open_nvml()
        number = torch.cuda.current_device()
        uuid = str(getattr(torch.cuda.get_device_properties(number), "uuid", "")) or None
        return NvmlEnergy(nvml, find_device(nvml, os.environ, uuid, number))
    except NoGpu:
        return None
