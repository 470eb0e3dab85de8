"""Interrupted trainings continue with identical bits, and engines see the same batches."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.errors import BadInput
from harness.events.native import EventWriter
from harness.spec.cell import ModelSpec
from harness.study import training
from harness.study.checkpoint import load_checkpoint
from harness.study.model import build_model, predict
from harness.study.plan import Plan
from harness.study.views import View

CROPS = View("sample", 192, crop=16)
PLAN = Plan(
    name="tiny",
    backend="dense",
    events=CROPS,
    held_out=CROPS,
    batch=2,
    steps=12,
    evaluate_every=6,
    held_out_events=4,
    model=ModelSpec(filters=2, depth=2),
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread: for tiny layers, a second one takes more time than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ROOT = Path(__file__).resolve().parents[3]

# A clock that advances by one second per call makes every step one second long: a checkpoint is
# saved every five steps.
DYING = """
import json, os, signal, sys
import torch
from itertools import count
from pathlib import Path
from harness.study.plan import Plan
from harness.study.training import train
torch.set_num_threads(1)
plan = Plan.from_json(json.loads(sys.argv[1]))
def die(progress):
    if progress.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
train(plan, Path(sys.argv[2]), die, clock=count().__next__, checkpoint_seconds=5)
"""


def run(plan, folder, **options):
    return training.train(plan, folder, lambda progress: None, **options)


def steps_of(folder):
    return pd.read_csv(folder / "steps.csv").drop(columns=["step_seconds", "seconds"])


def tensors_of(state):
    """All tensors of an optimiser's state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
@pytest.mark.parametrize("backend", ["dense", "sscn"])
def test_a_killed_training_continues_with_identical_bits(backend, optimiser, tmp_path):
    plan = replace(PLAN, backend=backend, optimiser=optimiser)
    whole = run(plan, tmp_path / "whole")
    killed = tmp_path / "killed"
    child = subprocess.run(
        [sys.executable, "-c", DYING, json.dumps(plan.to_json()), str(killed)],
        cwd=ROOT,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    left = load_checkpoint(killed / "checkpoint.pt")
    assert left is not None and left.step == 5
    resumed = run(plan, killed)
    assert resumed.step == whole.step == 12
    for name, tensor in whole.network.items():
        assert torch.equal(tensor, resumed.network[name]), name
    moments = tensors_of(whole.optimiser)
    assert len(moments) >= len(list(whole.network)) / 2
    for ours, theirs in zip(moments, tensors_of(resumed.optimiser), strict=True):
        assert torch.equal(ours, theirs)
    pd.testing.assert_frame_equal(steps_of(tmp_path / "whole"), steps_of(killed))
    assert pd.read_csv(killed / "held_out.csv")["step"].tolist() == [6, 12]


def test_a_finished_training_does_nothing_more(tmp_path):
    run(PLAN, tmp_path)
    before = (tmp_path / "steps.csv").read_bytes()
    again = training.train(PLAN, tmp_path, lambda progress: pytest.fail("it took a step"))
    assert again.step == 12
    assert (tmp_path / "steps.csv").read_bytes() == before


def test_more_steps_continue_a_finished_training(tmp_path):
    run(replace(PLAN, steps=4), tmp_path / "parts")
    parts = run(PLAN, tmp_path / "parts")
    whole = run(PLAN, tmp_path / "whole")
    assert all(torch.equal(whole.network[name], parts.network[name]) for name in whole.network)


def test_a_training_continues_in_a_moved_folder(tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    first.mkdir()
    with EventWriter(first / "events.h5", 192, 3, "from the sample") as writer:
        for number in range(4):
            writer.append(View("sample", 192).open()[number])

    def plan(folder, steps):
        return replace(PLAN, events=replace(CROPS, source=str(folder / "events.h5")), steps=steps)

    run(plan(first, 2), first / "training")
    first.rename(then)
    assert run(plan(then, 4), then / "training").step == 4
    assert pd.read_csv(then / "training" / "steps.csv")["step"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["checkpoint.pt", "steps.csv", "held_out.csv"])
def test_a_training_with_a_damaged_checkpoint_or_table_starts_again(name, tmp_path):
    plan = replace(PLAN, steps=6)
    first = run(plan, tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sentences = []
    again = run(plan, tmp_path, say=sentences.append)
    (sentence,) = sentences
    assert sentence.endswith("; the training starts again")
    assert all(torch.equal(first.network[key], again.network[key]) for key in first.network)
    assert pd.read_csv(tmp_path / "steps.csv")["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert run(plan, tmp_path, say=sentences.append).step == 6
    assert len(sentences) == 1


@pytest.mark.parametrize(
    "change", [{"latest": {}}, {"loader": {}}, {"plan": {"batch": "x"}}, {"optimiser": {}}, {}]
)
def test_a_checkpoint_that_does_not_fit_starts_the_training_again(change, tmp_path):
    whole = run(PLAN, tmp_path / "whole")
    part = run(replace(PLAN, steps=4), tmp_path / "part")
    values = vars(part) | change  # as of an earlier version, which had no checksum
    if not change:
        values |= {"sha256": "0" * 64}
    torch.save(values, tmp_path / "part" / "checkpoint.pt")
    said = []
    again = run(PLAN, tmp_path / "part", say=said.append)
    assert "the training starts again" in said[0]
    for name, tensor in whole.network.items():
        assert torch.equal(tensor, again.network[name]), name


def test_another_plan_may_not_continue_a_training(tmp_path):
    run(replace(PLAN, steps=1), tmp_path)
    with pytest.raises(BadInput, match="another batch"):
        run(replace(PLAN, batch=4), tmp_path)


def test_two_engines_have_the_same_initial_weights_and_batches(tmp_path):
    plan = replace(PLAN, steps=3)
    for backend in ("dense", "sscn"):
        run(replace(plan, backend=backend), tmp_path / backend)
    dense, sparse = steps_of(tmp_path / "dense"), steps_of(tmp_path / "sscn")
    assert dense["sites"].tolist() == sparse["sites"].tolist()
    np.testing.assert_allclose(dense["loss"], sparse["loss"], rtol=1e-3)
    assert dense["loss"][0] == pytest.approx(sparse["loss"][0], rel=1e-5)


def test_training_lowers_the_loss(tmp_path):
    run(replace(PLAN, steps=60, evaluate_every=0, learning_rate=1e-2), tmp_path)
    table = pd.read_csv(tmp_path / "steps.csv")
    assert table["loss"][-10:].mean() < 0.8 * table["loss"][:5].mean()
    assert table["accuracy"].between(0, 1).all()


def test_a_sixteen_bit_policy_trains_with_32_bit_parameters(tmp_path):
    reduced = run(replace(PLAN, precision="bf16", steps=3), tmp_path / "bf16")
    full = run(replace(PLAN, steps=3), tmp_path / "fp32")
    assert {t.dtype for n, t in reduced.network.items() if n.endswith("weight")} == {torch.float32}
    first = [pd.read_csv(tmp_path / name / "steps.csv")["loss"][0] for name in ("bf16", "fp32")]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)
    assert full.step == reduced.step == 3


def test_the_time_limit_ends_a_training_after_the_step_that_reaches_it(tmp_path):
    ended = run(replace(PLAN, seconds=3.0), tmp_path, clock=count().__next__)
    assert ended.step == 3
    assert ended.seconds == 3.0


def test_energy_counts_the_steps_alone(tmp_path):
    ended = run(replace(PLAN, steps=3), tmp_path, joules=count(100, 2).__next__)
    assert ended.joules == 6.0
    assert pd.read_csv(tmp_path / "steps.csv")["joules"].tolist() == [2.0, 4.0, 6.0]


def test_without_an_energy_counter_the_column_is_empty(tmp_path):
    run(replace(PLAN, steps=1), tmp_path)
    assert pd.read_csv(tmp_path / "steps.csv")["joules"].isna().all()


def test_progress_has_the_time_left(tmp_path):
    seen = []
    training.train(replace(PLAN, steps=4), tmp_path, seen.append, clock=count().__next__)
    assert [progress.left for progress in seen] == pytest.approx([3.0, 2.0, 1.0, 0.0])
    assert [progress.fraction for progress in seen] == [0.25, 0.5, 0.75, 1.0]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(training.Diverged, match="at step"):
        run(replace(PLAN, learning_rate=1e30, steps=12), tmp_path)


def test_predictions_keep_the_order_of_events_and_leave_empty_ones_empty():
    model = build_model(PLAN)
    events = [CROPS.open()[i] for i in (0, 3)]
    empty = replace(
        events[0], **{k: getattr(events[0], k)[:0] for k in ("voxels", "energies", "labels")}
    )
    alone = [next(predict(model, [event], 1)) for event in events]
    together = list(predict(model, [events[0], empty, events[1]], 3))
    assert [len(p) for p in together] == [len(events[0]), 0, len(events[1])]
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[2], alone[1])
    assert [len(p) for p in predict(model, [empty], 1)] == [0]


def test_the_rate_rises_to_its_highest_and_falls_with_the_root_of_the_step():
    plan = replace(PLAN, learning_rate=4e-3, warm_up=100)
    rates = [plan.rate(step) for step in (1, 50, 100, 400, 10_000)]
    assert rates == pytest.approx([4e-5, 2e-3, 4e-3, 2e-3, 4e-4])
    assert replace(plan, warm_up=0).rate(7) == 4e-3


def test_the_rate_falls_to_zero_over_the_cool_down():
    plan = replace(PLAN, steps=100, warm_up=0, learning_rate=1.0, cool_down=20)
    assert [plan.rate(step) for step in (1, 80, 81, 91, 100)] == [1.0, 1.0, 1.0, 0.5, 0.05]


def test_the_optimiser_uses_the_rate_of_the_warm_up(tmp_path):
    plan = replace(PLAN, steps=1, learning_rate=1e-2)
    start = dict(build_model(plan).network.named_parameters())
    moved = {}
    for warm_up in (0, 10):
        done = run(replace(plan, warm_up=warm_up, average=0.0), tmp_path / str(warm_up))
        name = next(iter(start))
        moved[warm_up] = float((done.network[name] - start[name]).detach().abs().max())
    assert moved[10] == pytest.approx(moved[0] / 10, rel=1e-3)
