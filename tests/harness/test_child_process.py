"""Child processes of asv's command and of workers end with all that they have started."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.run.worker_process import LocalWorker
from tests.harness.processes import gone, interrupt_the_next_start

ROOT = Path(__file__).resolve().parents[2]

BUSY = "set -m; sleep 600 & echo $! > {pid}; wait"
"""Starts a process in a process group of its own, as asv does with benchmarks and ninja does."""

CALLS = {
    "asv": "from harness.asv.command import run_with_progress; run_with_progress({command!r})",
    "worker": (
        "from harness.run.worker_process import LocalWorker; worker = LocalWorker({command!r})\n"
        "try: worker.request({{}}, 600)\n"
        "finally: worker.close()"
    ),
}

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def written(path):
    """Wait for the process number that a command writes into a file."""
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.05)
    return int(path.read_text())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_ends_what_a_child_has_started(call, number, tmp_path):
    pytest.importorskip("asv") if call == "asv" else None
    pid = tmp_path / "pid"
    command = ["bash", "-c", BUSY.format(pid=pid)]
    code = (  # handlers as harness.__main__ has them; a job may ignore SIGINT
        "import signal\n"
        "for each in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(each, signal.default_int_handler)\n"
    )
    code += CALLS[call].format(command=command)
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        started = written(pid)
        launcher.send_signal(number)  # to it alone, as a scheduler does
        assert launcher.wait() != 0
        assert gone(started)
    finally:
        launcher.kill()
        launcher.wait()


@pytest.mark.timeout(120)
def test_a_worker_that_has_ended_leaves_no_process(tmp_path):
    pid = tmp_path / "pid"
    worker = LocalWorker(["bash", "-c", BUSY.format(pid=pid).replace("wait", "exit")])
    started = written(pid)
    worker._process.wait()
    worker.close()
    assert gone(started)


def test_an_interrupt_while_a_worker_starts_leaves_no_process(monkeypatch):
    started = interrupt_the_next_start(monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            LocalWorker(["sleep", "600"])  # the numbers of its channels add some seconds
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].returncode == -signal.SIGKILL  # and has been waited for
