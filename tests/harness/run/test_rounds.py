import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from backends.capabilities import Capabilities
from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.run import max_batch, turns
from harness.run import rounds as run
from harness.run.failures import Failed
from harness.run.job import Job
from harness.run.locks import device_lock
from harness.run.rounds import Settings
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.run.worker_process import LocalWorker
from harness.spec.cell import Cell

FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
CAN = Capabilities("1.0", ("cpu",), {"cpu": ("fp32",)})
QUIET = Console(quiet=True)


def cells(*names, sizes=(192,)):
    return [Cell("s", name, size, 1, "forward", "cold") for size in sizes for name in names]


def everything_runs(listed):
    return {c.backend: SimpleNamespace(capabilities=CAN, reason="") for c in listed}


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch, tmp_path):
    def start(task):
        return LocalWorker(FAKE)

    def measure(tasks, seed, watcher):
        return whole(tasks, seed, watcher, start)

    whole = turns.measure_in_turns
    monkeypatch.setattr(turns, "measure_in_turns", measure)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # do not wait for other runs
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def records(path):
    return list(store.records([path]))


def test_every_cell_becomes_a_valid_record(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "slow", "segfaults-at-sample", sizes=(192, 512))
    run.run(listed, Settings(out, repeats=2), everything_runs(listed), QUIET)
    found = records(out)
    assert len(found) == 12
    assert len({r["run"] for r in found}) == 1
    assert {r["round"] for r in found} == {0, 1}
    outcomes = {(r["cell"]["backend"], r["outcome"]) for r in found}
    assert outcomes == {("steady", "ok"), ("slow", "ok"), ("segfaults-at-sample", "crashed")}
    assert all(len(r["commit"]) in (0, 40) for r in found)


def test_what_cannot_run_is_recorded_once_with_its_reason(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "absent")
    found = everything_runs(listed) | {
        "absent": SimpleNamespace(capabilities=None, reason="not installed: No module")
    }
    run.run(listed, Settings(out, repeats=3), found, QUIET)
    outcomes = [r["outcome"] for r in records(out)]
    assert outcomes.count("ok") == 3
    (record,) = [r for r in records(out) if r["outcome"] == "unavailable"]
    assert record["reason"] == "not installed: No module"


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "wrong-at-prepare")
    with (tmp_path / "log").open("w") as log:
        run.run(listed, Settings(out), everything_runs(listed), Console(file=log, width=200))
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[1/2]")
    assert "left" in lines[0]
    text = "\n".join(lines)
    assert "10 ms ± 0.0 % (8 samples)" in text
    assert "wrong: relative RMSE of the logits" in text
    assert "\x1b" not in text


def test_on_a_terminal_the_line_is_live(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady")
    with (tmp_path / "log").open("w") as log:
        console = Console(file=log, width=200, force_terminal=True)
        run.run(listed, Settings(out), everything_runs(listed), console)
    assert "\x1b[" in (tmp_path / "log").read_text()


def test_a_resumed_run_measures_what_is_missing(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "slow", sizes=(192, 512, 768))
    run.run(listed[:3], Settings(out, seed=5), everything_runs(listed), QUIET)
    before = out.read_bytes()
    run.run(listed, Settings(out, resume=True), everything_runs(listed), QUIET)
    assert out.read_bytes().startswith(before)
    found = records(out)
    assert len(found) == 6
    assert len({Cell.from_json(r["cell"]).name for r in found}) == 6
    assert {(r["run"], r["seed"]) for r in found} == {(found[0]["run"], 5)}


def test_a_full_temporary_folder_ends_the_run_and_its_cell_is_measured_later(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_FLAG", str(tmp_path / "flag"))
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "fills-once-at-prepare")
    with pytest.raises(BadInput, match=r"^the temporary folder is full$"):
        run.run(listed, Settings(out), everything_runs(listed), QUIET)
    assert "fills-once-at-prepare" not in {r["cell"]["backend"] for r in records(out)}
    run.run(listed, Settings(out, resume=True), everything_runs(listed), QUIET)
    outcomes = {r["cell"]["backend"]: r["outcome"] for r in records(out)}
    assert outcomes == {"steady": "ok", "fills-once-at-prepare": "ok"}


def test_a_run_of_another_commit_is_not_resumed(tmp_path, make_record):
    out = tmp_path / "run.jsonl"
    store.append(out, make_record(commit="d" * 40))
    with pytest.raises(BadInput, match="measured with commit dddddddddddd"):
        run.run([], Settings(out, resume=True), {}, QUIET)


def current_record(make_record):
    """Return a record as this machine would write it now."""
    source = EngineSource.here()
    allowed = sorted(os.sched_getaffinity(0))
    return make_record(
        backend="steady",
        commit=source.commit,
        dirty=source.dirty,
        budget_seconds=StopRule().budget,
        machine=machine.facts() | {"threads": len(allowed), "affinity": allowed},
        versions=machine.versions() | {"steady": "1.0"},
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dirty": None}, "uncommitted changes: "),
        ({"budget_seconds": 3.0}, "a budget of 3, this run has 10"),
        ({"machine": {"processor": "Other CPU"}}, "processor Other CPU, this run has"),
        ({"machine": {"threads": 77}}, "threads 77, this run has"),
        ({"machine": {"affinity": [900]}}, r"affinity \[900\], this run has"),
        ({"machine": {"memory_bytes": 2**30}}, r"memory \(GiB\) 1, this run has"),
        ({"versions": {"torch": "1.0"}}, "torch 1.0, this run has"),
        ({"versions": {"steady": "0.9"}}, "steady 0.9, this run has 1.0"),
    ],
)
def test_a_run_under_other_conditions_is_not_resumed(tmp_path, make_record, change, sentence):
    out, listed = tmp_path / "run.jsonl", cells("steady")
    record = current_record(make_record)
    for name, value in change.items():
        if isinstance(value, dict):
            record[name] = record[name] | value
        else:
            record[name] = not record[name] if value is None else value
    store.append(out, record)
    with pytest.raises(BadInput, match=f"was measured with {sentence}.*start a new run"):
        run.run(listed, Settings(out, resume=True), everything_runs(listed), QUIET)
    assert len(records(out)) == 1


def test_a_run_under_the_same_conditions_is_resumed(tmp_path, make_record):
    out, listed = tmp_path / "run.jsonl", cells("steady")
    store.append(out, current_record(make_record))
    run.run(listed, Settings(out, resume=True), everything_runs(listed), QUIET)
    assert len(records(out)) == 2


def test_two_sides_take_turns_and_write_to_two_files(tmp_path, monkeypatch):
    out = tmp_path / "run.jsonl"
    log = tmp_path / "turns"
    monkeypatch.setenv("FAKE_WORKER_LOG", str(log))
    listed = cells("steady")
    other = EngineSource(tmp_path, "b" * 40, False)
    settings = Settings(out, repeats=2, rule=StopRule(least=9))
    paths = run.run(listed, settings, everything_runs(listed), QUIET, against=other)
    assert paths == [out, tmp_path / "run.against.jsonl"]
    mine, theirs = map(records, paths)
    assert {r["commit"] for r in theirs} == {"b" * 40}
    assert [r["round"] for r in mine] == [r["round"] for r in theirs] == [0, 1]
    assert {r["run"] for r in mine} == {r["run"] for r in theirs}
    assert {len(r["turn_samples"]) for r in mine + theirs} == {3}


def test_another_environment_takes_turns_with_its_interpreter(tmp_path, monkeypatch):
    out = tmp_path / "run.jsonl"
    listed = cells("steady", "absent")
    here = EngineSource(tmp_path, "a" * 40, False)
    there = replace(here, python="/there/python", environment="steady@1")
    absent = SimpleNamespace(capabilities=None, reason="not installed: No module")
    used = []
    whole = turns.measure_in_turns

    def watched(tasks, *arguments):
        used.extend((task.source.environment, task.python) for task in tasks)
        return whole(tasks, *arguments)

    monkeypatch.setattr(turns, "measure_in_turns", watched)
    with (tmp_path / "log").open("w") as log:
        paths = run.run(
            listed,
            Settings(out),
            everything_runs(listed),
            Console(file=log, width=200),
            source=here,
            against=there,
            found_against=everything_runs(listed) | {"absent": absent},
            python=lambda engine: "/here/python",
        )
    assert used == [("", "/here/python"), ("steady@1", "/there/python")]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "absent is left out: not installed: No module (in steady@1)"
    assert sum(" in steady@1: " in line for line in lines) == 1
    assert [[r["outcome"] for r in records(path)] for path in paths] == [["unavailable", "ok"]] * 2


KILLED = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from pathlib import Path
from test_rounds import *
whole = turns.measure_in_turns
turns.measure_in_turns = lambda tasks, seed, watcher: whole(
    tasks, seed, watcher, lambda task: LocalWorker(FAKE))
listed = cells("steady", "slow", sizes=(192, 512, 768))
rule = StopRule(least=400, most=400)
run.run(listed, Settings(Path({out!r}), repeats=50, rule=rule, resume=True),
        everything_runs(listed), QUIET)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_loses_at_most_the_cell_in_flight(tmp_path, sign):
    out = tmp_path / "run.jsonl"
    here = Path(__file__).resolve().parent
    code = KILLED.format(here=str(here), root=str(here.parents[2]), out=str(out))
    seen = 0
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < seen + 3:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(sign)
        child.wait()
        found = records(out)  # a half line would warn, and warnings are errors
        assert len(found) >= seen + 3
        seen = len(found)
    keys = [(Cell.from_json(r["cell"]).name, r["round"]) for r in found]
    assert len(set(keys)) == len(keys)  # nothing was measured twice


def test_a_device_is_held_by_one_run_at_a_time(tmp_path):
    said = []
    with device_lock("cpu", said.append, tmp_path):
        code = (
            "from pathlib import Path; from harness.run.locks import device_lock\n"
            "def say(text): print(text, flush=True)\n"
            f"with device_lock('cpu', say, Path({str(tmp_path)!r})): say('mine')"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[3],
        )
        assert other.stdout is not None
        assert "waiting" in other.stdout.readline()
    assert other.stdout.readline() == "mine\n"
    other.stdout.close()
    other.wait()
    assert not said


@pytest.mark.parametrize("answer", [0, 1, 2, 3, 37, 64, 100])
def test_the_largest_batch_is_found_in_few_tries(answer):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= answer

    assert max_batch.bisect_largest(fits, 100) == answer
    assert len(tried) == len(set(tried)) <= 15
    assert all(1 <= batch <= 100 for batch in tried)


def test_the_boundary_counts_memory_over_the_baseline(monkeypatch):
    class Fake:
        """A worker that takes a million bytes an event and dies beyond thirty events."""

        def __init__(self, task):
            self.batch = task.job.cell.batch

        def request(self, command, timeout):
            if command["do"] == "prepare" and self.batch > 30:
                raise Failed("out-of-memory", "no")
            if command["do"] == "finish":
                memory = {"baseline_bytes": 5e8, "peak_rss_bytes": 5e8 + 1e6 * self.batch}
                record = {"memory": memory, "host_seconds": [1.0]}
                return {"outcome": "ok", "reason": "", "record": record}
            return {"record": {}}

        def close(self):
            pass

    (cell,) = cells("steady")
    task = Task(Job(cell), 0, EngineSource(Path("."), "", True))
    seen = []

    def tried(task, probe):
        seen.append((task.job.cell.batch, probe.fits, probe.entries["outcome"]))

    assert max_batch.find_max_batch(task, 20_500_000, 100, tried, Fake) == 20
    assert max_batch.find_max_batch(task, 10**12, 100, tried, Fake) == 30
    assert (32, False, "out-of-memory") in seen
    assert (21, False, "ok") in seen


def test_records_hold_the_run(tmp_path):
    out = tmp_path / "run.jsonl"
    listed = cells("steady")
    run.run(listed, Settings(out), everything_runs(listed), QUIET)
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert record["schema"] == 1
    assert record["cell"] == listed[0].to_json()
    assert record["stop"] == "spread"
    assert record["device_seconds"] is None


def test_the_latest_run_of_a_suite_is_that_of_the_latest_record(tmp_path, make_record):
    with pytest.raises(BadInput, match="no run of demo"):
        run.latest_out("demo", tmp_path)
    days = {"20260101T000000-demo": 3, "20260102T000000-demo": 2, "20260103T000000-training": 4}
    for name, day in (days | {"20260104T000000-demo.against": 5}).items():
        record = make_record(utc=f"2026-01-0{day}T00:00:00Z")
        store.append(tmp_path / "runs" / f"{name}.jsonl", record)
    assert run.latest_out("demo", tmp_path).stem == "20260101T000000-demo"
    new = run.default_out("demo", tmp_path)
    assert new.parent == tmp_path / "runs"
    assert new.stem > max(days)
