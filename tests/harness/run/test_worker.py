import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from backends.contract import Unsupported
from backends.uresnet import UResNet
from harness.errors import BadInput
from harness.instruments.clock import HostClock
from harness.run import workload
from harness.run.cell_measurement import CellMeasurement
from harness.run.failures import Failed, classify
from harness.run.job import Job
from harness.run.references import load_reference
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.run.turns import measure_in_turns
from harness.run.worker import answers, measure_cell
from harness.run.worker_process import LocalWorker
from harness.run.workload import Workload, load_batch
from harness.spec.cell import Cell, ModelSpec

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"filters": 2, "depth": 2, "reps": 1, "classes": 5}


def make_cell(backend="sscn", phase="forward", state="cold", **changes):
    values = Cell("s", backend, 192, 1, phase, state).to_json()
    return Cell.from_json(values | {"model": SMALL} | changes)


def make_job(*arguments, references="", **changes):
    rule = StopRule(least=3, most=4, budget=1.0)
    return Job(make_cell(*arguments, **changes), rule=rule, warm_up=0.2, references=str(references))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return tmp_path_factory.mktemp("references")


@pytest.fixture(autouse=True)
def _keep_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("phase", ["forward", "step"])
@pytest.mark.parametrize("state", ["first", "cold", "warm"])
def test_a_cell_is_checked_and_timed(phase, state, references):
    found = measure_cell(make_job("sscn", phase, state, references=references))
    assert (found["outcome"], found["reason"]) == ("ok", "")
    assert found["sites"] > 100
    assert found["load_seconds"] > 0
    assert all(seconds > 0 for seconds in found["host_seconds"])
    stolen = found["conditions"]["stolen"]
    assert stolen is None or 0 <= stolen <= 1
    # A quick engine fills its turn with samples; the first call happens once.
    assert len(found["host_seconds"]) == 1 if state == "first" else len(found["host_seconds"]) >= 2
    assert found["memory"]["peak_rss_bytes"] >= found["memory"]["baseline_bytes"] > 0
    assert found["error"]["rel_rmse"] < 1e-5
    assert found["error"]["argmax_agreement"] == 1
    if phase == "step":
        assert found["error"]["grad_rel_rmse"] < 1e-4
        assert found["error"]["loss_rel"] < 1e-5
    assert found["machine"]["threads"] >= 1
    assert found["machine"]["affinity"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["precision_readback"]
    assert ("tuning_seconds" in found) == (state != "first")
    assert found.get("tuning_seconds", 1) >= min(found["host_seconds"])


@pytest.mark.parametrize("phase", ["forward", "step"])
def test_a_network_of_the_family_is_checked_and_timed(phase, references):
    model = SMALL | {"slope": 0.33, "inputs": 2, "classes": 2}
    found = measure_cell(make_job("sscn", phase, "cold", references=references, model=model))
    assert (found["outcome"], found["reason"]) == ("ok", "")


def test_a_network_that_older_engines_lack_is_named(monkeypatch):
    older = namedtuple("UResNetConfig", "filters depth reps classes in_channels", defaults=(1,))
    monkeypatch.setattr(workload, "UResNetConfig", older)
    assert workload.uresnet_config(ModelSpec(filters=8)) == older(8, 5, 2, 5)
    assert workload.uresnet_config(ModelSpec(inputs=2)) == older(16, 5, 2, 5, 2)
    found = measure_cell(make_job("sscn", model=SMALL | {"slope": 0.33}))
    assert found["outcome"] == "unavailable"
    assert "have no network filters=2,depth=2,reps=1,activation=leaky_relu:0.33" in found["reason"]


def test_the_kernel_map_is_built_in_cold_calls_and_kept_in_warm_ones(monkeypatch):
    from backends.sscn.adapter import Backend

    built = []
    whole = Backend.tensor
    monkeypatch.setattr(Backend, "tensor", lambda *a, **k: (built.append(1), whole(*a, **k))[1])
    for state, more in (("cold", 3), ("warm", 0)):
        cell = make_cell("sscn", "forward", state)
        subject = Workload(Job(cell), load_batch(cell, "sample")[0])
        call = subject.call()
        before = len(built)
        for _ in range(3):
            call()
        assert len(built) - before == more, state


def broken(monkeypatch, change):
    """Make an engine's results wrong by ``change`` of the logits."""
    whole = UResNet.__call__

    def call(self, x):
        found = whole(self, x)
        return change(found) if isinstance(found, torch.Tensor) else found

    monkeypatch.setattr(UResNet, "__call__", call)


@pytest.mark.parametrize(
    ("phase", "change", "reason"),
    [
        ("forward", lambda out: out * 1.001, "relative RMSE of the logits"),
        ("forward", lambda out: out * float("nan"), "not finite"),
        ("forward", lambda out: out[:-1], "the logits have shape"),
        ("step", lambda out: torch.cat([out[:, :1].detach(), out[:, 1:]], 1), "gradient"),
    ],
)
def test_a_wrong_engine_gets_no_times(phase, change, reason, references, monkeypatch):
    job = make_job("sscn", phase, references=references)
    load_reference(job)  # computed before our engine breaks
    broken(monkeypatch, change)
    found = measure_cell(job)
    assert found["outcome"] == "wrong"
    assert reason in found["reason"]
    assert "host_seconds" not in found
    assert found["error"]["argmax_agreement"] is not None


def test_zero_gradients_are_wrong(references, monkeypatch):
    job = make_job("sscn", "step", references=references)
    load_reference(job)
    broken(monkeypatch, lambda out: out.detach() + 0 * out)
    found = measure_cell(job)
    assert found["outcome"] == "wrong"
    assert "gradient" in found["reason"]


def test_references_are_computed_once_for_all_engines(tmp_path):
    job = make_job("sscn", references=tmp_path)
    first, image = load_reference(job), load_reference(job, "image")
    assert not torch.equal(first.logits, image.logits)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(stamps) == 2  # of the first and of the last check
    other = make_job("dense", references=tmp_path)
    assert torch.equal(load_reference(other).logits, first.logits)
    assert torch.equal(load_reference(other, "image").logits, image.logits)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == stamps
    warm = make_job("dense", "forward", "warm", references=tmp_path)
    assert torch.equal(load_reference(warm).logits, first.logits)
    assert not torch.equal(load_reference(warm, "features").logits, first.logits)


def test_a_reference_that_cannot_be_computed_is_an_error(tmp_path):
    job = make_job("sscn", references=tmp_path)
    job = Job.from_json(job.to_json() | {"events": "missing.root"})
    with pytest.raises(RuntimeError, match=r"reference could not be computed: .*missing\.root"):
        load_reference(job)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "out-of-memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "out-of-memory"),
        (RuntimeError("std::bad_alloc"), "out-of-memory"),
        (RuntimeError("shapes differ"), "crashed"),
        (ImportError("No module named x"), "unavailable"),
        (Unsupported("no bf16"), "unavailable"),
        (BadInput("give a file"), "unavailable"),
        (SystemExit(3), "crashed"),
        (Failed("wrong", "error too large"), "wrong"),
    ],
)
def test_errors_have_outcomes(error, outcome):
    assert classify(error).outcome == outcome


def test_escape_codes_of_an_engine_do_not_reach_the_terminal():
    reason = classify(RuntimeError("\x1b[2J\x1b]0;title\x07red \x1b[31malert\x9b0m\r")).reason
    assert reason == "RuntimeError: red alert0m"


def test_the_memory_of_a_worker_is_bounded_and_the_record_says_so():
    # Enough for torch, not for a dense volume of 512 px.
    job = Job(make_cell("dense", size=512), memory_bytes=2_000_000_000, check=False)
    task = Task(job, 0, EngineSource(ROOT, "", True))
    ((_, found),) = measure_in_turns([task], 0, Silent())
    assert found["outcome"] == "out-of-memory"
    assert "allocate" in found["reason"]
    assert "bound to 2 GB" in found["reason"]
    assert found["memory"]["limit_bytes"] == 2_000_000_000


class Silent:
    def sampled(self, task, samples):
        pass


def test_a_worker_process_returns_the_fields_of_a_measurement_in_this_process(references):
    job = make_job("sscn", references=references)
    task = Task(job, 0, EngineSource(ROOT, "", True))
    ((_, found),) = measure_in_turns([task], 0, Silent())
    assert found["outcome"] == "ok"
    assert found["memory"]["limit_bytes"] > 10**8
    assert set(measure_cell(job)) <= set(found) | {"stop"}


def test_what_an_engine_prints_does_not_reach_the_answer(tmp_path):
    file = tmp_path / "cell.json"
    file.write_text(json.dumps(make_job("sscn").to_json() | {"check": False}))
    code = (
        "import os, sys, torch\n"
        "torch.set_num_interop_threads(1)\n"
        "from harness.run import workload\n"
        "whole = workload.Workload.call\n"
        "def loud(self):\n"
        "    print('hello from Python'); os.write(1, b'hello from C\\n'); return whole(self)\n"
        "workload.Workload.call = loud\n"
        "from harness.__main__ import main\n"
        f"main(['worker', {str(file)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["outcome"] == "ok", found
    assert found["cell"]["backend"] == "sscn"
    assert "hello from Python" in done.stderr
    assert "hello from C" in done.stderr


def test_affinity_and_threads_are_set_and_recorded():
    import os

    processor = min(os.sched_getaffinity(0))
    job = make_job("sscn").to_json() | {"processors": [processor], "threads": 1, "check": False}
    launched = LocalWorker(EngineSource(ROOT, "", True).command(sys.executable))
    try:
        answer = launched.request({"do": "prepare", "job": job}, 120)
    finally:
        launched.close()
    assert answer["record"]["machine"]["affinity"] == [processor]
    assert answer["record"]["machine"]["threads"] == 1


def test_a_worker_must_be_prepared_before_it_samples():
    (answer,) = answers(iter([{"do": "sample", "seconds": 1.0}]))
    assert answer["outcome"] == "unavailable"
    assert "prepare" in answer["reason"]


def test_throttled_samples_are_flagged(monkeypatch):
    session = CellMeasurement(make_job("sscn"))
    session._call = lambda: None
    session._clock = HostClock()
    states = iter([False, False, False, True, True, True])
    session._is_throttled = lambda: next(states)
    for _ in range(3):
        session.sample(0.0)
    assert session._throttled == [1, 2]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("phase", ["forward", "step"])
def test_a_real_gpu_is_measured_with_all_instruments(phase, references):
    job = make_job("dense", phase, references=references, device="cuda")
    task = Task(job, 0, EngineSource(ROOT, "", True))
    ((_, found),) = measure_in_turns([task], 0, Silent())
    assert (found["outcome"], found["reason"]) == ("ok", "")
    assert len(found["device_seconds"]) == len(found["host_seconds"])
    assert all(d <= h for d, h in zip(found["device_seconds"], found["host_seconds"], strict=True))
    memory = found["memory"]
    assert 0 < memory["torch_allocated_bytes"] <= memory["torch_reserved_bytes"]
    assert memory["nvml_peak_bytes"] - memory["nvml_baseline_bytes"] > 0
    assert memory["outside_torch_bytes"] > 0  # the CUDA context at least
    assert found["machine"]["gpu_uuid"]
    assert found["conditions"]["after"]["sm_clock_mhz"] > 0
    assert found["energy_joules"] is None or found["energy_joules"] > 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"references": 7}, "references"),
        ({"threads": "2"}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"warm_up": float("nan")}, "warm_up"),
        ({"rule": {"budget": None}}, "rule.budget"),
        ({"rule": {"often": 1}}, "rule"),
        ({"processors": [-1]}, "processors"),
        ({"nonesuch": 1}, "nonesuch"),
    ],
)
def test_a_job_with_a_wrong_field_is_one_sentence(change, field):
    values = Job(Cell("s", "sscn", 192, 1, "forward", "cold")).to_json()
    with pytest.raises(BadInput, match=field):
        Job.from_json(values | change)


def test_processors_that_do_not_exist_make_a_cell_unavailable():
    job = Job(Cell("s", "sscn", 192, 1, "forward", "cold"), processors=(2**16,))
    found = measure_cell(job)
    assert found["outcome"] == "unavailable"
    assert "65536" in found["reason"]


def test_a_killed_process_of_the_reference_is_started_once_more(tmp_path, monkeypatch):
    started = []

    def run(*_, **__):
        started.append(1)
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    job = Job(Cell("s", "sscn", 192, 1, "forward", "cold"), references=str(tmp_path))
    with pytest.raises(RuntimeError, match="could not be computed"):
        load_reference(job)
    assert len(started) == 2


def test_a_worker_needs_torch_and_numpy_alone(tmp_path):
    code = """
import json, sys
absent = ("orjson", "scipy", "pandas", "h5py", "uproot", "pooch", "matplotlib", "jinja2", "plotly",
          "typer", "rich", "requests")
sys.modules.update(dict.fromkeys(absent))
from harness.run.job import Job
from harness.run.sampling import StopRule
from harness.run.worker import measure_cell
from harness.spec.cell import Cell
job = Job(Cell("s", "sscn", 192, 1, "step", "cold"), rule=StopRule(budget=0.01))
print(json.dumps([measure_cell(job)[key] for key in ("outcome", "reason")]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == ["ok", ""], done.stderr


def test_every_engine_has_the_same_allocator_policy_and_the_record_says_so():
    policies = []
    for engine in ("sscn", "fvdb"):  # present or not: it is not imported yet
        job = Job(Cell("s", engine, 192, 1, "forward", "cold"), check=False)
        worker = LocalWorker(EngineSource.here().command(sys.executable))
        worker.request({"do": "prepare", "job": job.to_json()}, 300)
        policies.append(worker.partial["allocator"])
        worker.close()
    assert policies == ["freed memory is kept (mmap from 32 MiB, trim from 1 GiB)"] * 2


def test_a_first_call_finds_no_results_of_compilers_and_no_call_those_of_tuners(tmp_path):
    echo = (
        "import json, os, sys; names = ('CUDA_CACHE_PATH', 'WARPCONVNET_BENCHMARK_CACHE_DIR'); "
        "os.write(int(sys.argv[2]), json.dumps({n: os.environ.get(n) for n in names}).encode() + "
        "b'\\n'); os.read(int(sys.argv[1]), 1)"
    )
    places = []
    for _ in range(2):
        worker = LocalWorker([sys.executable, "-c", echo], caches=str(tmp_path), first=True)
        places.append(worker.request({}, 60)["CUDA_CACHE_PATH"])
        Path(places[-1]).mkdir()
        worker.close()
    assert len(set(places)) == 2
    assert list(tmp_path.iterdir()) == []  # the caches end with their worker
    worker = LocalWorker([sys.executable, "-c", echo], caches=str(tmp_path))
    found = worker.request({}, 60)
    assert found["CUDA_CACHE_PATH"] == os.environ.get("CUDA_CACHE_PATH")
    assert Path(found["WARPCONVNET_BENCHMARK_CACHE_DIR"]).parents[1] == tmp_path
    worker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_reference_is_not_computed_again(tmp_path, monkeypatch):
    kept = tmp_path / "a folder" / "kept"
    monkeypatch.setenv("SSCN_BENCH_REFERENCES", str(kept))
    found = load_reference(make_job("sscn", references=tmp_path / "of one run"))
    monkeypatch.setattr(subprocess, "run", None)  # nothing can be computed any more
    again = load_reference(make_job("dense", references=tmp_path / "of another run"))
    assert torch.equal(found.logits, again.logits)
    with pytest.raises(TypeError):
        load_reference(make_job("sscn", references=tmp_path, batch=2))


@pytest.mark.parametrize(
    ("name", "first", "shared"),
    [("sscn", False, True), ("sscn", True, False), ("spconv-triton", False, False)],
)
def test_what_triton_compiled_is_shared_by_workers_whose_engine_does_not_tune(
    name, first, shared, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/the/users")
    echo = (
        "import json, os, sys; found = {'found': os.environ['TRITON_CACHE_DIR']}; "
        "os.write(int(sys.argv[2]), json.dumps(found).encode() + b'\\n'); "
        "os.read(int(sys.argv[1]), 1)"
    )
    worker = LocalWorker(
        [sys.executable, "-c", echo], caches=str(tmp_path), first=first, engine=name
    )
    found = worker.request({}, 60)["found"]
    worker.close()
    assert (found == "/the/users") == shared
