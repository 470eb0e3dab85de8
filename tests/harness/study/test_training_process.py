"""Training in a child process: its record, its predictions, and its failures."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from harness.errors import BadInput
from harness.results import store
from harness.spec.cell import ModelSpec
from harness.study import training_process
from harness.study.live import LiveTraining
from harness.study.plan import Plan, read_plan, write_plan
from harness.study.predictions import load_predictions, step_of
from harness.study.training import Progress
from harness.study.training_process import run_training
from harness.study.training_worker import read_entries, write_entries
from harness.study.views import View

ROOT = Path(__file__).resolve().parents[3]
CROPS = View("sample", 192, crop=16)
PLAN = Plan("tiny", "dense", CROPS, CROPS, batch=2, steps=3, model=ModelSpec(filters=2, depth=2))
TESTS = {"sample-192px": (CROPS, 4)}


EARLIER_PLAN = """
{"plan": {"name": "sparse 192 px", "backend": "sscn",
  "events": {"source": "out/events/mixture-192px", "size": 192, "classes": 5, "dim": 3, "crop": 0},
  "held_out": {"source": "sample", "size": 192, "classes": 5, "dim": 3, "crop": 0},
  "batch": 16, "steps": 200000, "seconds": 1200.0, "evaluate_every": 150, "held_out_events": 128,
  "device": "cpu", "precision": "fp32", "options": {},
  "model": {"filters": 16, "depth": 5, "reps": 2, "classes": 5}, "optimiser": "muon",
  "learning_rate": 0.006, "warm_up": 100, "average": 0.9975, "seed": 0},
 "tests": {"sample-192px": {"events": 256,
  "view": {"source": "sample", "size": 192, "classes": 5, "dim": 3, "crop": 0}}}}
"""
"""A plan as it was written before plans shared their settings with trainings."""


@pytest.fixture
def quiet():
    return Console(file=StringIO(), width=200)


@pytest.fixture(autouse=True)
def _one_thread_and_an_own_device_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.slow
def test_a_training_leaves_tables_predictions_and_one_valid_record(tmp_path, quiet):
    folder, out = tmp_path / "tiny", tmp_path / "records.jsonl"
    assert run_training(folder, PLAN, TESTS, out, quiet) == "ok"
    (record,) = store.records([out])
    assert record["outcome"] == "ok"
    assert record["cell"]["size"] == 16
    assert record["cell"]["events"]["set"] == "sample"
    assert len(record["host_seconds"]) == 3
    assert record["training"]["steps"] == 3
    assert record["training"]["events"] == 6
    assert record["versions"]["torch"]
    assert len(pd.read_csv(folder / "steps.csv")) == 3
    events = CROPS.open()[:4]
    predicted = list(load_predictions(folder / "sample-192px.npz", events, 5))
    assert [len(p.predicted) for p in predicted] == [len(event) for event in events]

    # The same request, also after a move, does nothing. A request for more steps continues the
    # training and repeats the predictions.
    assert run_training(folder, PLAN, TESTS, out, quiet) == "ok"
    assert len(list(store.records([out]))) == 1
    folder = folder.rename(tmp_path / "moved")
    elsewhere = replace(CROPS, source="elsewhere/sample")
    moved = replace(PLAN, events=elsewhere, held_out=elsewhere)
    assert run_training(folder, moved, {"sample-192px": (elsewhere, 4)}, out, quiet) == "ok"
    assert len(list(store.records([out]))) == 1
    assert run_training(folder, replace(PLAN, steps=5), TESTS, out, quiet) == "ok"
    assert len(pd.read_csv(folder / "steps.csv")) == 5
    assert step_of(folder / "sample-192px.npz") == 5
    assert [r["training"]["steps"] for r in store.records([out])] == [3, 5]


def test_a_child_that_dies_becomes_a_record(tmp_path, quiet, monkeypatch):
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(training_process, "interpreter", lambda name: str(killer))
    out = tmp_path / "records.jsonl"
    assert run_training(tmp_path / "tiny", PLAN, TESTS, out, quiet) == "crashed"
    (record,) = store.records([out])
    assert record["reason"] == "the training died of SIGKILL"
    assert record["training"]["name"] == "tiny"


@pytest.mark.parametrize(
    "text",
    ["", '{"outcome": "o', "[]", '{"reason": ""}'],
    ids=["empty", "cut", "list", "no outcome"],
)
def test_damaged_entries_count_as_missing(text, tmp_path):
    (tmp_path / "entries.json").write_text(text)
    assert read_entries(tmp_path) is None


def test_a_training_with_damaged_entries_or_a_damaged_plan_runs_again(tmp_path, quiet, monkeypatch):
    folder, out = tmp_path / "tiny", tmp_path / "records.jsonl"
    started = []

    def finish(folder, python):
        started.append(python)
        write_entries(folder, {"outcome": "wrong", "reason": "a stand-in"})
        return 0

    monkeypatch.setattr(training_process, "_run_child", finish)
    for name in ("entries.json", "plan.json"):
        run_training(folder, PLAN, TESTS, out, quiet)
        path = folder / name
        path.write_bytes(path.read_bytes()[:-20])
    run_training(folder, PLAN, TESTS, out, quiet)
    assert len(started) == 3
    run_training(folder, PLAN, TESTS, out, quiet)
    assert len(started) == 3


FINISHED = {
    "outcome": "ok",
    "host_seconds": [0.1, 0.1, 0.1],
    "training": {"name": "tiny", "steps": 3, "events": 6, "seconds": 0.3},
}


def test_a_record_that_a_kill_has_prevented_is_written_by_the_next_command(
    tmp_path, quiet, monkeypatch
):
    folder, out = tmp_path / "tiny", tmp_path / "records.jsonl"
    write_plan(folder, PLAN, TESTS)
    write_entries(folder, FINISHED)
    monkeypatch.setattr(training_process, "_run_child", lambda *_: pytest.fail("it trained"))
    for _ in range(2):
        assert run_training(folder, PLAN, TESTS, out, quiet) == "ok"
        (record,) = store.records([out])
        assert record["training"]["steps"] == 3


@pytest.mark.parametrize(
    "wrong", [{"outcome": "good"}, {"host_seconds": ["x"]}, {"host_seconds": [float("nan")]}]
)
def test_entries_that_make_no_record_are_made_again(wrong, tmp_path, quiet, monkeypatch):
    folder, out = tmp_path / "tiny", tmp_path / "records.jsonl"
    write_plan(folder, PLAN, TESTS)
    write_entries(folder, FINISHED | wrong)

    def finish(folder, python):
        write_entries(folder, FINISHED)
        return 0

    monkeypatch.setattr(training_process, "_run_child", finish)
    assert run_training(folder, PLAN, TESTS, out, quiet) == "ok"
    assert len(list(store.records([out]))) == 1


def test_a_killed_child_is_started_once_more(tmp_path, quiet, monkeypatch):
    codes = [-9, 0]

    def end(folder, python):
        code = codes.pop(0)
        if not code:
            write_entries(folder, FINISHED)
        return code

    monkeypatch.setattr(training_process, "_run_child", end)
    out = tmp_path / "records.jsonl"
    assert run_training(tmp_path / "tiny", PLAN, TESTS, out, quiet) == "ok"
    assert len(list(store.records([out]))) == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"batch": 1.5}, {"warm_up": -1}, {"seed": 2**70}, {"options": {"a": 1}}, {"nonesuch": 1}),
        *({"events": {"source": 5, "size": 192}}, {"model": {"filters": "x"}}),
    ],
)
def test_a_plan_with_a_wrong_field_is_one_sentence(change, tmp_path):
    write_plan(tmp_path, PLAN, TESTS)
    values = json.loads((tmp_path / "plan.json").read_text())
    values["plan"] |= change
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match="is damaged; remove it and repeat"):
        read_plan(tmp_path)


def test_a_training_waits_for_the_device(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(training_process, "_run_child", lambda folder, python: 3)
    held = []

    @contextmanager
    def lock(device, say):
        held.append(device)
        yield

    monkeypatch.setattr(training_process, "device_lock", lock)
    assert run_training(tmp_path / "tiny", PLAN, TESTS, tmp_path / "r.jsonl", quiet) == "crashed"
    assert held == ["cpu"]


def test_a_plan_of_an_earlier_version_loads(tmp_path):
    (tmp_path / "plan.json").write_text(EARLIER_PLAN)
    plan, tests = read_plan(tmp_path)
    assert (plan.batch, plan.steps, plan.seconds, plan.optimiser) == (16, 200000, 1200.0, "muon")
    assert plan.events == View("out/events/mixture-192px", 192)
    assert tests == {"sample-192px": (View("sample", 192), 256)}
    assert set(plan.to_json()) >= set(json.loads(EARLIER_PLAN)["plan"])


@pytest.mark.parametrize("text", ["", '{"plan": {', "[]", '{"plan": {}, "tests": {}}'])
def test_a_damaged_plan_is_one_sentence(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BadInput, match="is damaged; remove it and repeat"):
        read_plan(tmp_path)


def test_a_child_ends_when_its_parent_is_gone():
    code = (
        "import time; from harness.study.training_worker import end_with_parent; "
        "end_with_parent(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()  # what the death of the process that holds the other end does
        assert child.wait(30) == 1


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = replace(PLAN, options={"kernels": "cpu"}, seconds=2.5)
    write_plan(tmp_path, plan, TESTS)
    assert read_plan(tmp_path) == (plan, TESTS)
    json.loads((tmp_path / "plan.json").read_text())


def test_progress_without_a_terminal_is_a_line_at_intervals_with_the_time_left(quiet):
    now = iter([0.0, 1.0, 20.0, 20.0, 21.0, 22.0, 22.0])
    with LiveTraining("tiny", quiet, now.__next__) as live:
        live(Progress(1, 0.1, 90.0, 6.5, 0.2))
        live(Progress(5, 0.5, 75.0, 5.5, 0.3))
        live(Progress(10, 1.0, 0.0, 4.5, 0.4))
    lines = quiet.file.getvalue().splitlines()
    assert lines == [
        "tiny: step 5, loss 5.500, accuracy 0.300, 75 s left",
        "tiny: step 10, loss 4.500, accuracy 0.400",
    ]
