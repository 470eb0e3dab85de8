import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness.run import sampling, worker_process
from harness.run.failures import Failed
from harness.run.job import Job
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.run.turns import measure_in_turns
from harness.run.worker_process import LocalWorker
from harness.spec.cell import Cell
from tests.harness.processes import gone

FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
CODE = EngineSource(Path("."), "c" * 40, False)


def start(task):
    return LocalWorker(FAKE)


def make_task(backend, *, state="cold", timeout=20.0, **rule):
    cell = Cell("s", backend, 192, 1, "forward", state)
    return Task(Job(cell, rule=StopRule(**rule)), 0, CODE, timeout=timeout)


class Watcher:
    def __init__(self):
        self.seen = []

    def sampled(self, task, samples):
        self.seen.append((task.job.cell.backend, len(samples)))


def entries_of(*names, watcher=None, **options):
    tasks = [make_task(name, **options) for name in names]
    found = measure_in_turns(tasks, 0, watcher or Watcher(), start)
    return {task.job.cell.backend: entries for task, entries in found}


def test_a_steady_worker_gives_times():
    found = entries_of("steady")["steady"]
    assert found["outcome"] == "ok"
    assert found["host_seconds"] == [0.01] * 8
    assert found["stop"] == "spread"
    assert len(found["turn_samples"]) == 2
    assert sum(found["turn_samples"]) == len(found["host_seconds"])
    assert found["memory"]["limit_bytes"] > 0  # the launcher bounds what a cell may take
    assert gone(found["pid"])


@pytest.mark.parametrize("when", ["load", "prepare", "sample", "finish"])
@pytest.mark.parametrize(
    ("deed", "outcome", "reason"),
    [
        ("raises", "crashed", "RuntimeError: the engine broke"),
        ("wrong", "wrong", "relative RMSE"),
        ("allocates", "out-of-memory", "can't allocate memory"),
        ("aborts", "out-of-memory", "bad_alloc"),
        ("segfaults", "crashed", "died of SIGSEGV"),
        ("exits", "crashed", "exit code 3"),
        ("garbage", "crashed", "not a JSON object"),
    ],
)
def test_whatever_happens_becomes_an_outcome_and_the_rest_goes_on(deed, when, outcome, reason):
    bad = f"{deed}-at-{when}"
    found = entries_of("steady", bad, "slow")
    assert found[bad]["outcome"] == outcome
    assert reason in found[bad]["reason"]
    assert found[bad].get("sites") == (None if when == "load" else 5)  # known before the engine ran
    assert found["steady"]["outcome"] == found["slow"]["outcome"] == "ok"


def test_a_worker_that_closes_its_channel_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(worker_process, "GRACE", 0.3)
    start_time = time.monotonic()
    found = entries_of("closes-at-sample")["closes-at-sample"]
    assert found["outcome"] == "crashed"
    assert time.monotonic() - start_time < 15


@pytest.mark.parametrize("name", ["hangs-at-sample", "ignores-at-sample", "ignores-at-prepare"])
def test_a_hung_worker_times_out_and_is_killed_even_if_it_ignores_sigterm(name):
    pids = []

    def remember(task):
        worker = LocalWorker(FAKE)
        pids.append(worker.pid)
        return worker

    ((_, found),) = measure_in_turns([make_task(name, timeout=2.0)], 0, Watcher(), remember)
    assert found["outcome"] == "timeout"
    assert "no answer in 2 s" in found["reason"]
    assert gone(pids[0])


@pytest.mark.parametrize(("number", "times"), [(11, 1), (9, 2)])
def test_samples_of_a_cell_that_fails_later_are_kept(number, times):
    """A signal from outside has to come twice: the cell is measured once more."""
    task = make_task("steady")
    task = Task(Job(task.job.cell, rule=StopRule(least=10**6, most=10**6)), 0, CODE)
    found, started = ended_by(number, times, task)
    assert started == times
    assert found["outcome"] == "crashed"
    assert signal.Signals(number).name in found["reason"]
    assert found["host_seconds"] == [0.01] * 12


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_cell_whose_worker_somebody_has_ended_is_measured_once_more(number):
    found, started = ended_by(number, 1, make_task("steady", least=20))
    assert started == 2
    assert found["outcome"] == "ok"


def ended_by(number, times, task):
    """Measure a task whose worker gets a signal at its twelfth sample, so many times."""
    workers = []

    def remember(task):
        workers.append(LocalWorker(FAKE))
        return workers[-1]

    class Killer(Watcher):
        def sampled(self, task, samples):
            super().sampled(task, samples)
            if len(samples) == 12 and len(workers) <= times:
                os.kill(workers[-1].pid, number)

    ((_, found),) = measure_in_turns([task], 0, Killer(), remember)
    return found, len(workers)


def test_workers_take_turns(tmp_path, monkeypatch):
    log = tmp_path / "turns"
    monkeypatch.setenv("FAKE_WORKER_LOG", str(log))
    entries_of("steady", "slow", least=17)
    order = log.read_text().split()
    assert len(order) == 10
    for first in range(0, len(order), 2):
        assert set(order[first : first + 2]) == {"steady", "slow"}
    assert order[2:4] == order[0:2][::-1]  # ABBA


def test_an_engine_short_of_memory_gets_a_second_try_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_FLAG", str(tmp_path / "flag"))
    names = ["steady", "once-at-prepare"]
    for seed in range(20):  # the order of the first turn decides who starts first
        if sampling.turn_order(names, seed, 0)[0] == "steady":
            break
    tasks = [make_task(name) for name in names]
    found = {t.job.cell.backend: e for t, e in measure_in_turns(tasks, seed, Watcher(), start)}
    assert found["once-at-prepare"]["outcome"] == "ok"


def test_first_calls_take_a_process_each():
    pids = set()

    def remember(task):
        worker = LocalWorker(FAKE)
        pids.add(worker.pid)
        return worker

    task = make_task("steady", state="first")
    ((_, found),) = measure_in_turns([task], 0, Watcher(), remember)
    assert len(pids) == 3
    assert found["stop"] == "samples"


def test_leaving_early_ends_the_workers():
    pids = []

    def remember(task):
        worker = LocalWorker(FAKE)
        pids.append(worker.pid)
        return worker

    class Interrupted(Watcher):
        def sampled(self, task, samples):
            raise KeyboardInterrupt

    tasks = [make_task("steady"), make_task("slow")]
    with pytest.raises(KeyboardInterrupt):
        list(measure_in_turns(tasks, 0, Interrupted(), remember))
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_a_worker_ends_when_its_launcher_is_killed():
    import subprocess

    code = (
        "import sys, time; sys.path.insert(0, '.');"
        "from harness.run.source import EngineSource;"
        "from harness.run.worker_process import LocalWorker;"
        "w = LocalWorker(EngineSource.here().command(sys.executable));"
        "print(w.pid, flush=True); time.sleep(600)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone(pid)


def test_threads_are_set_for_every_library(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Dask's nanny does
    show = (
        "import os, sys, json;"
        "found = {name: value for name, value in os.environ.items() if 'THREADS' in name};"
        "os.fdopen(int(sys.argv[2]), 'w').write(json.dumps(found) + chr(10))"
    )
    worker = LocalWorker([sys.executable, "-c", show], threads=3)
    try:
        found = worker.request({}, 20)
    finally:
        worker.close()
    assert {found[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}


def test_an_interpreter_that_is_not_there_is_said_to_be_missing():
    ((_, found),) = measure_in_turns(
        [make_task("steady")], 0, Watcher(), lambda task: LocalWorker(["/no/such/python"])
    )
    assert found["outcome"] == "unavailable"
    assert "/no/such/python" in found["reason"]


def test_a_closed_worker_can_be_closed_again():
    worker = start(make_task("steady"))
    worker.close()
    worker.close()
    with pytest.raises(Failed):
        worker.request({"do": "prepare"}, 1.0)
