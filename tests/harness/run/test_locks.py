import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.run import locks, temporary
from harness.run.failures import MachineFailure
from harness.run.job import Job
from harness.run.locks import device_lock, file_lock, runtime_folder
from harness.run.references import load_reference
from harness.run.temporary import run_folder
from harness.run.worker import answers
from harness.spec.cell import Cell

ROOT = Path(__file__).resolve().parents[3]


def test_locks_lie_in_the_users_own_folder(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    with device_lock("cpu", print):
        (lock,) = own.iterdir()
    assert lock.stat().st_mode & 0o077 == 0


def test_a_shared_folder_or_a_link_is_not_used(tmp_path, monkeypatch):
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.mkdir()
    shared.chmod(0o777)
    link.symlink_to(shared)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for folder in (shared, link):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        assert runtime_folder() not in (shared, link)


@pytest.mark.parametrize("make", ["link", "fifo"])
def test_a_lock_that_is_no_regular_file_is_refused_at_once(make, tmp_path):
    lock, target = tmp_path / "sscn-bench-cpu.lock", tmp_path / "target"
    if make == "link":
        lock.symlink_to(target)
    else:
        os.mkfifo(lock)
    with pytest.raises(BadInput, match="remove it"), device_lock("cpu", print, tmp_path):
        pass
    assert not target.exists()


def test_one_run_at_a_time_writes_to_a_file(tmp_path):
    out = tmp_path / "run.jsonl"
    with (
        file_lock(out, tmp_path),
        pytest.raises(BadInput, match="another run is writing to"),
        file_lock(tmp_path / "." / "run.jsonl", tmp_path),
    ):
        pass
    with file_lock(out, tmp_path):
        pass


def test_folders_of_dead_runs_are_removed_and_those_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time\nfrom harness.run.temporary import run_folder\n"
        "with run_folder() as folder:\n    print(folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        strange = tmp_path / f"{temporary.PREFIX}without-owner"
        strange.mkdir()
        with run_folder() as own:
            assert own.is_dir()
            assert left.is_dir()  # its run is alive
        other.kill()
        other.wait()
        with run_folder():
            assert not left.exists()
        assert strange.is_dir()
    assert not own.exists()


def test_an_unusable_temporary_folder_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    for action in (temporary.require_temporary_space, lambda: run_folder().__enter__()):
        with pytest.raises(MachineFailure, match="temporary folder cannot be used"):
            action()


def test_references_that_cannot_be_stored_are_no_fault_of_the_engine(tmp_path):
    cell = Cell.from_json(
        Cell("s", "sscn", 192, 1, "forward", "cold").to_json()
        | {"model": {"filters": 2, "depth": 2, "reps": 1, "classes": 5}, "dim": 2}
    )
    job = Job(cell, references=str(tmp_path / "gone"))
    with pytest.raises(MachineFailure, match="temporary folder cannot be used"):
        load_reference(job)


def test_a_worker_reports_a_failure_of_the_machine_without_an_outcome(monkeypatch):
    from harness.run import worker

    class Full:
        def __init__(self, job):
            raise MachineFailure("the temporary folder is full")

    monkeypatch.setattr(worker, "CellMeasurement", Full)
    cell = Cell("s", "sscn", 192, 1, "forward", "cold")
    commands = iter([{"do": "prepare", "job": Job(cell).to_json()}])
    assert list(answers(commands)) == [{"machine_failure": "the temporary folder is full"}]


def test_the_process_of_a_reference_ends_with_its_parent(tmp_path):
    code = (
        "import os, subprocess, sys\n"
        "r, w = os.pipe()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from harness.child_process import "
        "die_with_parent as d; d(); print(1, flush=True); import time; time.sleep(600)'],"
        "stdout=w)\n"
        "os.read(r, 1)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(100):
        if (
            not Path(f"/proc/{pid}").exists()
            or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        ):
            return
        time.sleep(0.05)
    raise AssertionError("the child outlived its parent")


def test_the_lock_of_a_device_names_the_visible_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "../../0")
    with device_lock("cuda", print, tmp_path):
        (lock,) = tmp_path.iterdir()
    assert lock.parent == tmp_path
    assert locks.runtime_folder().is_dir()
