"""Trains and tests one network in a process of its own, and records how that went.

The parent (`run`) writes the plan into a folder and starts a child, which trains with live
progress, predicts the held-out events and leaves everything in the folder. A child that dies takes
nothing with it but the steps since its last checkpoint; one whose parent dies ends as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from backends.registry import interpreter
from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.run.job import Job
from harness.run.progress import format_duration
from harness.run.rounds import assemble
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.study import predictions
from harness.study.plan import Plan
from harness.study.views import View

PLAN, ENTRIES, STEPS = "plan.json", "entries.json", "steps.csv"
BAD_INPUT = 2
_LINE_SECONDS = 15.0


def write_plan(folder: Path, plan: Plan, tests: Mapping[str, tuple[View, int]]) -> None:
    """Write down what a folder is going to hold.

    Parameters
    ----------
    folder : Path
    plan : Plan
    tests : mapping
        Name of a test -> events to predict, and how many of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "plan": plan.to_json(),
        "tests": {name: {"view": vars(view), "events": n} for name, (view, n) in tests.items()},
    }
    (folder / PLAN).write_text(json.dumps(values, indent=1) + "\n")


def read_plan(folder: Path) -> tuple[Plan, dict[str, tuple[View, int]]]:
    """Read what `write_plan` wrote.

    Raises
    ------
    BadInput
        If the folder holds no plan.
    """
    try:
        values = json.loads((folder / PLAN).read_text())
    except (OSError, ValueError):
        raise BadInput(f"{folder} holds no {PLAN}; start with: harness study --out …") from None
    tests = {
        name: (View(**test["view"]), int(test["events"])) for name, test in values["tests"].items()
    }
    return Plan.from_json(values["plan"]), tests


def run(
    folder: Path,
    plan: Plan,
    tests: Mapping[str, tuple[View, int]],
    out: Path,
    console: Console,
) -> str:
    """Train and test one network in a child process, or go on where an earlier one stopped.

    Parameters
    ----------
    folder : Path
        Of this training.
    plan : Plan
    tests : mapping
        As for `write_plan`.
    out : Path
        Records: one is appended when the training ends, however it ends.
    console : Console
        Says what is going on.

    Returns
    -------
    str
        Outcome, as in `harness.results.store.OUTCOMES`.
    """
    finished = folder / ENTRIES
    if finished.exists() and _anywhere(*read_plan(folder)) == _anywhere(plan, tests):
        console.print(f"{plan.name}: there already", highlight=False)
        return str(json.loads(finished.read_text())["outcome"])
    finished.unlink(missing_ok=True)
    write_plan(folder, plan, tests)
    code = _child(folder, interpreter(plan.backend))
    if code == BAD_INPUT:
        entries: dict[str, Any] = {"outcome": "unavailable", "reason": "see the message above"}
    elif not finished.exists():
        if code == -signal.SIGINT or code == 130:
            raise KeyboardInterrupt
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        entries = {"outcome": "crashed", "reason": f"the training {how}"}
    else:
        entries = json.loads(finished.read_text())
    if entries["outcome"] != "ok":
        console.print(f"{plan.name}: {entries['outcome']}: {entries['reason']}", highlight=False)
    entries.setdefault("training", {"name": plan.name})
    cell = plan.cell(entries.pop("sha256", ""))
    task = Task(Job(cell), 0, EngineSource.here())
    identity = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-study"
    store.append(out, assemble(task, entries, identity, plan.seed))
    return str(entries["outcome"])


def _anywhere(plan: Plan, tests: Mapping[str, tuple[View, int]]) -> tuple[Plan, dict[str, Any]]:
    """Return what is asked for, wherever the study's folder lies."""
    return plan.anywhere(), {name: (view.anywhere(), n) for name, (view, n) in tests.items()}


def _child(folder: Path, python: str) -> int:
    path = os.pathsep.join([str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "harness", "study", "train", str(folder)]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


def end_with_parent() -> None:
    """End this process when its standard input closes, which a parent's death does."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def work(folder: Path, console: Console) -> None:
    """Train, test and write the entries of the record: the whole life of a child."""
    from harness.instruments.energy import RaplEnergy
    from harness.study import training

    plan, tests = read_plan(folder)
    end_with_parent()
    learner = training.learner_of(plan)
    energy = _gpu_energy() if plan.device == "cuda" else RaplEnergy()
    joules = energy.joules if energy is not None else lambda: None
    with LiveTraining(plan.name, console) as live:
        try:
            done = training.train(plan, folder, live, learner=learner, joules=joules)
        except training.Diverged as error:
            entries: dict[str, Any] = {"outcome": "wrong", "reason": str(error)}
            (folder / ENTRIES).write_text(json.dumps(entries))
            return
    for name, (view, count) in tests.items():
        path = folder / f"{name}.npz"
        if predictions.step_of(path) == done.step:
            continue
        console.print(f"{plan.name}: predicting {name}", highlight=False)
        events = view.open()[:count]
        predicted = list(training.predict(learner, events, min(plan.batch, 4)))
        predictions.save(path, predicted, events.sha256, done.step)
    steps = np.genfromtxt(folder / STEPS, delimiter=",", names=True, encoding="utf-8")
    steps = np.atleast_1d(steps)
    last = steps[-min(len(steps), 100) :]
    entries = {
        "outcome": "ok",
        "reason": "",
        "sha256": plan.events.open().sha256,
        "sites": int(np.median(steps["sites"])),
        "host_seconds": [round(float(value), 6) for value in steps["step_seconds"]],
        "stop": "budget" if plan.seconds and done.seconds >= plan.seconds else "samples",
        "energy_joules": None if done.joules is None else done.joules / (done.step * plan.batch),
        "precision_readback": learner.backend.precision_readback(),
        "machine": _machine(plan.device),
        "versions": machine.versions(),
        "training": {
            "name": plan.name,
            "steps": done.step,
            "events": done.step * plan.batch,
            "seconds": round(done.seconds, 3),
            "joules": done.joules,
            "loss": round(float(last["loss"].mean()), 6),
            "accuracy": round(float(last["accuracy"].mean()), 6),
        },
    }
    partial = folder / f"{ENTRIES}.part"
    partial.write_text(json.dumps(entries) + "\n")
    os.replace(partial, folder / ENTRIES)


def _machine(device: str) -> dict[str, Any]:
    import torch

    found = machine.facts() | {"threads": torch.get_num_threads()}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def _gpu_energy() -> Any:
    import torch

    from harness.instruments.energy import NvmlEnergy
    from harness.instruments.gpu import NoGpu, find_device, open_nvml

    try:
        nvml = open_nvml()
        number = torch.cuda.current_device()
        uuid = str(getattr(torch.cuda.get_device_properties(number), "uuid", "")) or None
        return NvmlEnergy(nvml, find_device(nvml, os.environ, uuid, number))
    except NoGpu:
        return None


class LiveTraining:
    """Shows a training as it goes: a bar on a terminal, a line now and then elsewhere.

    Parameters
    ----------
    name : str
    console : Console
    now : callable
        Seconds since any moment.
    """

    def __init__(self, name: str, console: Console, now: Any = time.monotonic) -> None:
        self._name, self._console, self._now = name, console, now
        self._said = now()
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._line = self._live.add_task(escape(name), total=1.0)

    def __enter__(self) -> LiveTraining:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, progress: Any) -> None:
        """Show where the training stands; the last step always gets its line."""
        text = (
            f"{self._name}: step {progress.step:,}, loss {progress.loss:.3f}, "
            f"accuracy {progress.accuracy:.3f}"
        )
        if progress.fraction < 1:
            text += f", {format_duration(progress.left)} left"
        self._live.update(self._line, completed=progress.fraction, description=escape(text))
        last = progress.fraction >= 1
        if last or (not self._console.is_terminal and self._now() - self._said >= _LINE_SECONDS):
            self._said = self._now()
            self._console.print(escape(text), highlight=False)
