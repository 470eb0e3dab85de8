import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness import child_process, temporary
from harness.errors import BadInput, MachineFailure
from harness.run import locks
from harness.run.job import Job
from harness.run.locks import device_lock, file_lock, runtime_folder
from harness.run.references import load_reference
from harness.run.worker import answers
from harness.spec.cell import Cell
from harness.temporary import run_folder

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
        file_lock(out),
        pytest.raises(BadInput, match="another run is writing to"),
        file_lock(tmp_path / "." / "run.jsonl"),
    ):
        pass
    with file_lock(out):
        pass
    assert not list(tmp_path.iterdir())


def test_runs_of_two_hosts_do_not_write_to_one_file(tmp_path, monkeypatch):
    # Hosts share the folder of the results, and each has its own run-time folder.
    shared = tmp_path / "shared"
    shared.mkdir()
    for host in ("one", "two"):
        (tmp_path / host).mkdir(mode=0o700)
    code = (
        "import time\nfrom pathlib import Path\nfrom harness.run.locks import file_lock\n"
        f"with file_lock(Path({str(shared / 'run.jsonl')!r})):\n"
        "    print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "one")},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "two"))
        with (
            pytest.raises(BadInput, match="another run is writing to"),
            file_lock(shared / "run.jsonl"),
        ):
            pass
        other.kill()
        other.wait()
        with file_lock(shared / "run.jsonl"):  # a lock ends with its process
            pass


def test_a_file_on_a_file_system_without_locks_is_reserved_on_this_host(tmp_path, monkeypatch):
    whole = fcntl.flock
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))

    def flock(handle, operation):
        if Path(os.readlink(f"/proc/self/fd/{handle}")).parent != own:
            raise OSError(errno.ENOLCK, "No locks available")
        whole(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    out = tmp_path / "run.jsonl"
    with file_lock(out), pytest.raises(BadInput, match="another run is"), file_lock(out):
        pass


def is_held(device):
    """Return whether some process holds the lock of a device."""

    class Held(Exception):
        pass

    def say(text):
        raise Held

    try:
        with device_lock(device, say):
            return False
    except Held:
        return True


@pytest.fixture
def own_runtime_folder(tmp_path, monkeypatch):
    """Give this test locks of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_the_worker_holds_its_device_while_it_measures(tmp_path, monkeypatch, own_runtime_folder):
    from harness.run import worker, worker_command

    seen = []
    monkeypatch.setattr(
        worker, "measure_cell", lambda job: seen.append(is_held(job.cell.device)) or {}
    )
    monkeypatch.setattr(child_process, "private_output", io.StringIO)
    file = tmp_path / "cell.json"
    file.write_text(json.dumps(Cell("s", "sscn", 192, 1, "forward", "cold").to_json()))
    worker_command.worker(file)
    assert seen == [True]
    assert not is_held("cpu")


def test_the_boundary_holds_its_device_while_it_measures(tmp_path, monkeypatch, own_runtime_folder):
    from harness.run import boundary_command, max_batch

    seen = []
    monkeypatch.setattr(
        max_batch, "find_max_batch", lambda task, *_: seen.append(is_held("cpu")) or 1
    )
    boundary_command.boundary(
        1.0, backend=["sscn"], size=[192], out=tmp_path / "b.jsonl",
        phase="step", device="cpu", precision="fp32", most=1, events="sample", timeout=1.0,
    )  # fmt: skip
    assert seen == [True]
    assert not is_held("cpu")


def test_folders_of_dead_runs_are_removed_and_those_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time\nfrom harness.temporary import run_folder\n"
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
    (tmp_path / "file").touch()
    job = Job(cell, references=str(tmp_path / "file" / "folder"))
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


def children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition):
    for _ in range(1200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_the_process_of_a_reference_ends_with_its_killed_parent(tmp_path):
    # A step of 16 events takes minutes in float64.
    cell = Cell("s", "sscn", 192, 16, "step", "cold")
    job = Job(cell, references=str(tmp_path))
    code = (
        "import json, sys\nfrom harness.run.job import Job\n"
        "from harness.run.references import load_reference\n"
        "load_reference(Job.from_json(json.loads(sys.argv[1])))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, json.dumps(job.to_json())], cwd=ROOT)
    reference = 0
    try:
        assert until(lambda: children(parent.pid))
        (reference,) = children(parent.pid)
        # It computes: its own code has loaded torch.
        assert until(lambda: "libtorch" in Path(f"/proc/{reference}/maps").read_text())
        assert "harness.run.references" in Path(f"/proc/{reference}/cmdline").read_text()
        parent.kill()
        parent.wait()
        assert until(lambda: not alive(reference)), "the process outlived its parent"
        assert not list(tmp_path.iterdir())
    finally:
        parent.kill()
        parent.wait()
        if reference and alive(reference):
            os.kill(reference, signal.SIGKILL)


def test_the_lock_of_a_device_names_the_visible_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "../../0")
    with device_lock("cuda", print, tmp_path):
        (lock,) = tmp_path.iterdir()
    assert lock.parent == tmp_path
    assert locks.runtime_folder().is_dir()
