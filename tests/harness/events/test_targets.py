"""Commands of ``events`` on targets that cannot be written, and on signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.events.native import EventWriter
from tests.harness.events.conftest import make_event

ROOT = Path(__file__).parents[3]


def start(*arguments, cwd, prepare=None):
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "events", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(cwd)},
        preexec_fn=prepare,
    )


def refusal(*arguments, cwd, prepare=None):
    """Run a command; return the one sentence that it is refused with."""
    child = start(*arguments, cwd=cwd, prepare=prepare)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 2, out + err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    return err


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in" / "events.h5"
    path.parent.mkdir()
    with EventWriter(path, 32, 3, "test") as writer:
        writer.append(make_event(50))
    return path


@pytest.mark.parametrize("name", ["/dev/full", "folder", "pipe", "n" * 256, "none/a.h5"])
@pytest.mark.parametrize("verb", ["convert", "view", "simulate"])
def test_targets_that_cannot_be_written_end_in_one_sentence(tmp_path, source, verb, name):
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    os.mkfifo(out / "pipe")
    target = out / name
    words = {
        "convert": ("convert", source, target),
        "view": ("view", source, "--out", target),
        "simulate": ("simulate", "--out", target, "--count", "1", "--size", "32"),
    }
    before = sorted(out.iterdir())
    assert str(target) in refusal(*words[verb], cwd=tmp_path)
    assert sorted(out.iterdir()) == before


def test_a_sample_without_its_folder_ends_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal("sample", "--out", tmp_path / "file" / "s", cwd=tmp_path)


def test_view_never_overwrites_its_own_page(tmp_path, source):
    out = tmp_path / "x.png"
    assert "is the name of the picture" in refusal("view", source, "--out", out, cwd=tmp_path)
    assert not out.exists()


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_ends_conversion_in_one_sentence_and_leaves_nothing(tmp_path):
    # A limit on the length of files fails in the same calls as a full disk.
    out = tmp_path / "out"
    out.mkdir()
    arguments = ("convert", "sample", out / "events.h5", "--size", "192", "--count", "50")
    assert "File too large" in refusal(*arguments, cwd=tmp_path, prepare=small_files)
    assert list(out.iterdir()) == []


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail("nothing happened in time")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_simulation_ends_with_its_children_on_a_signal(tmp_path, name):
    pytest.importorskip("calzone")
    pytest.importorskip("xraydb")
    out = tmp_path / "out"
    out.mkdir()
    command = ("simulate", "--out", out / "e.h5", "--count", "5000", "--processes", "2")
    child = start(*command, cwd=tmp_path)
    try:
        # The two simulations, and multiprocessing's tracker of resources.
        children = until(lambda: found if len(found := children_of(child.pid)) >= 2 else None)
        until(lambda: list(tmp_path.glob("sscn-bench-*/*.log")))
        child.send_signal(getattr(signal, name))
        child.communicate(timeout=20)
    finally:
        child.kill()
    until(lambda: not any(alive(pid) for pid in children), 20)
    assert child.returncode != 0
    if name != "SIGKILL":
        assert list(out.iterdir()) == []
        assert not list(tmp_path.glob("sscn-bench-*"))
