import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("distributed")

from rich.console import Console

from backends.capabilities import Capabilities
from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.run import cluster
from harness.run import rounds as run
from harness.run.cluster import DEVICE, dask_executor, environment
from harness.run.job import Job
from harness.run.rounds import Settings
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.spec.cell import Cell

# Dask's own shutdown leaves sockets for the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")

HERE = Path(__file__).resolve().parent


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter that starts the scripted worker, whatever it is asked to start."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/bin/sh\nshift 3\nexec "{sys.executable}" "{HERE / "fake_worker.py"}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


CAN = Capabilities("1.0", ("cpu",), {"cpu": ("fp32",)})
FOUND = SimpleNamespace(capabilities=CAN, reason="")


def measure(out, fake_python, names, address="local:2", sizes=(192, 512, 768)):
    listed = [Cell("s", name, size, 1, "forward", "cold") for size in sizes for name in names]
    found = dict.fromkeys(names, FOUND)
    settings = Settings(out, rule=StopRule(least=9), timeout=60.0)
    run.run(
        listed,
        settings,
        found,
        Console(quiet=True),
        executor=dask_executor(address),
        python=lambda name: fake_python,
    )
    return list(store.records([out]))


needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")


@needs_two
def test_cells_are_spread_over_the_devices_of_this_host(tmp_path, fake_python):
    found = measure(tmp_path / "run.jsonl", fake_python, ["steady", "slow"])
    assert len(found) == 6
    assert {r["outcome"] for r in found} == {"ok"}
    assert len({r["pid"] for r in found}) == 6  # a process of its own for every cell


@needs_two
def test_a_dask_worker_killed_in_the_middle_costs_nothing_but_time(
    tmp_path, fake_python, monkeypatch
):
    monkeypatch.setenv("FAKE_WORKER_FLAG", str(tmp_path / "flag"))
    found = measure(tmp_path / "run.jsonl", fake_python, ["steady", "murders-once-at-sample"])
    assert (tmp_path / "flag").exists()  # it did happen
    assert Counter(r["outcome"] for r in found) == {"ok": 6}


@needs_two
def test_a_cell_that_kills_its_dask_worker_twice_is_recorded_as_crashed(tmp_path, fake_python):
    found = measure(
        tmp_path / "run.jsonl", fake_python, ["steady", "murders-at-sample"], sizes=(192,)
    )
    outcomes = {r["cell"]["backend"]: r for r in found}
    assert outcomes["steady"]["outcome"] == "ok"
    assert outcomes["murders-at-sample"]["outcome"] == "crashed"
    assert "Dask worker failed twice" in outcomes["murders-at-sample"]["reason"]


def test_a_cluster_that_runs_already_is_used(tmp_path, fake_python):
    with cluster.local_cluster(1, "cpu") as started:
        address = started.scheduler_address
        found = measure(tmp_path / "r.jsonl", fake_python, ["steady"], address, sizes=(192,))
    assert [r["outcome"] for r in found] == ["ok"]


def test_the_machines_of_a_local_cluster_are_those_of_its_records(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    found = cluster.dask_machines("local:2")("cpu", 0)
    assert [m["affinity"] for m in found] == [[0, 1], [2, 3]]
    assert [m["threads"] for m in found] == [2, 2]
    assert {m["processor"] for m in found} == {machine.processor_name()}


def test_a_run_on_a_cluster_is_resumed_on_its_machines_alone(tmp_path, make_record):
    cell = Cell("s", "steady", 192, 1, "forward", "cold")
    with cluster.local_cluster(1, "cpu") as started:
        machines = cluster.dask_machines(started.scheduler_address)
        (facts,) = machines("cpu", 0)
        assert facts["affinity"] == sorted(os.sched_getaffinity(0))
        for change, ends in (({}, None), ({"processor": "Other CPU"}, "processor Other CPU")):
            out = tmp_path / f"{len(change)}.jsonl"
            source = EngineSource.here()
            store.append(
                out,
                make_record(
                    backend="steady",
                    commit=source.commit,
                    dirty=source.dirty,
                    budget_seconds=StopRule().budget,
                    machine=facts | change,
                    versions={},
                ),
            )
            settings = Settings(out, resume=True)
            options = {"executor": lambda *_: iter(()), "machines": machines}
            if ends is None:
                run.run([cell], settings, {"steady": FOUND}, Console(quiet=True), **options)
                continue
            with pytest.raises(BadInput, match=f"was measured with {ends}"):
                run.run([cell], settings, {"steady": FOUND}, Console(quiet=True), **options)


def test_a_cluster_without_workers_is_one_sentence(monkeypatch):
    import distributed

    monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty,
        pytest.raises(BadInput, match="has no worker; start one"),
    ):
        cluster.dask_machines(empty.scheduler_address)("cpu", 0)


def test_an_address_without_meaning_is_one_sentence():
    for address in ("local:", "local:0", "local:many"):
        with pytest.raises(BadInput, match="write local:2"):
            dask_executor(address)


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch):
    import distributed

    def refuse(*_, **__):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    executor = dask_executor("tcp://127.0.0.1:1")
    with pytest.raises(BadInput, match="no Dask scheduler at"):
        list(executor([], 0, SimpleNamespace(say=print)))


@pytest.mark.parametrize("address", ["nonsense", "ftp://somewhere:1", "tcp://127.0.0.1:port"])
def test_a_malformed_address_of_a_scheduler_is_one_sentence(address):
    with pytest.raises(BadInput, match="no Dask scheduler at"):
        list(dask_executor(address)([], 0, SimpleNamespace(say=print)))


def test_devices_share_the_processors_without_overlap():
    parts = [environment(i, 3, "cpu", range(8))[DEVICE] for i in range(3)]
    import json

    processors = [p for part in parts for p in json.loads(part)["processors"]]
    assert sorted(processors) == list(range(8))
    with pytest.raises(BadInput, match="local:2 or fewer"):
        environment(0, 3, "cpu", range(2))


def test_every_gpu_gets_one_worker(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment(1, 2, "cuda", ())["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert environment(1, 2, "cuda", ())["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    with pytest.raises(BadInput, match="only 2 GPUs"):
        environment(2, 3, "cuda", ())


def test_a_task_is_fitted_to_the_device_it_lands_on():
    job = Job(Cell("s", "b", 192, 1, "forward", "cold"), references="/no/such/folder")
    task = Task(job, 0, EngineSource(Path("."), "", True))
    found = cluster._adapted(task, {"processors": [1], "share": 0.5}).job
    assert found.processors == (1,)
    assert found.references == ""
    assert 0 < found.memory_bytes < 0.5 * cluster.machine.available_bytes()
    on_gpu = replace(task, job=replace(job, cell=replace(job.cell, device="cuda")))
    assert cluster._adapted(on_gpu, {"processors": [1], "share": 0.5}).job.memory_bytes == 0
