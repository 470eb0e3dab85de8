"""Runs a training in a process of its own, and appends its record.

A process that crashes loses at most the steps since its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape

from backends.registry import interpreter
from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.results.record import Entries, Record
from harness.results.validation import problem
from harness.run.locks import device_lock
from harness.run.source import EngineSource
from harness.study.plan import Plan, Tests, read_plan, write_plan
from harness.study.training_worker import ENTRIES_FILE, read_entries

BAD_INPUT = 2
"""Exit code of a process that has printed what to change."""


def run_training(folder: Path, plan: Plan, tests: Tests, out: Path, console: Console) -> str:
    """Train and test a network in a child process, or continue an interrupted training.

    Parameters
    ----------
    folder : Path
        Folder of the training.
    plan : Plan
        The training.
    tests : mapping
        As for ``harness.study.plan.write_plan``.
    out : Path
        File of records; a record is appended when the training ends, whatever its outcome.
    console : Console
        Destination of messages.

    Returns
    -------
    str
        Outcome, one of ``harness.results.record.OUTCOMES``.
    """

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    entries = read_entries(folder)
    if entries is not None and _is_planned(folder, plan, tests):
        record = _record(plan, entries)
        if not problem(record):
            if not _is_recorded(record, out):  # killed before the record was written
                store.append(out, record)
            say(f"{plan.name}: there already")
            return record["outcome"]
    (folder / ENTRIES_FILE).unlink(missing_ok=True)
    write_plan(folder, plan, tests)
    with device_lock(plan.device, say):
        code = _run_child(folder, interpreter(plan.backend))
        if code == -signal.SIGKILL:  # it is continued from its checkpoint
            code = _run_child(folder, interpreter(plan.backend))
    record = _record(plan, read_entries(folder) or _failure(code))
    if record["outcome"] != "ok":
        say(f"{plan.name}: {record['outcome']}: {record['reason']}")
    store.append(out, record)
    return record["outcome"]


def _record(plan: Plan, entries: dict[str, Any]) -> Record:
    """Return the record of a training that has ended with these entries."""
    values = {"training": {"name": plan.name}} | entries
    sha256 = values.pop("sha256", "")
    source = EngineSource.here()
    return store.make_record(
        plan.cell(sha256 if isinstance(sha256, str) else ""),
        cast("Entries", values),
        run=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-study",
        commit=source.commit,
        dirty=source.dirty,
        seed=plan.seed,
    )


def _is_recorded(record: Record, out: Path) -> bool:
    """Return whether a file holds the record of a training, apart from when it was written."""
    parts = ("cell", "outcome", "training", "host_seconds")
    return out.exists() and any(
        all(each.get(part) == record.get(part) for part in parts) for each in store.records([out])
    )


def _is_planned(folder: Path, plan: Plan, tests: Tests) -> bool:
    """Return whether a folder holds a plan and its tests, apart from the folders of events."""
    try:
        present = read_plan(folder)
    except BadInput:
        return False
    one, other = (
        (plan.without_folders(), {k: (v.without_folder(), n) for k, (v, n) in tests.items()})
        for plan, tests in (present, (plan, tests))
    )
    return one == other


def _failure(code: int) -> dict[str, Any]:
    """Return the entries of the record of a process that has written none."""
    if code == BAD_INPUT:
        return {"outcome": "unavailable", "reason": "see the message above"}
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return {"outcome": "crashed", "reason": f"the training {how}"}


def _run_child(folder: Path, python: str) -> int:
    path = os.pathsep.join([str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-P", "-m", "harness", "study", "train", str(folder)]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise
