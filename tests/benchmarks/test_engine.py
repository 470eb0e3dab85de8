"""The bounds of our engine are met or not by what the records say."""

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import engine
from harness.errors import BadInput


def record(backend="sscn", seconds=(1.0,), outcome="ok", memory=1e6, error=1e-6, **rest):
    return {
        "cell": {"backend": backend, "phase": "forward", "precision": "fp32"}
        | rest.pop("cell", {}),
        "outcome": outcome,
        "host_seconds": list(seconds),
        "memory": {"peak_rss_bytes": 5e6 + memory, "baseline_bytes": 5e6},
        "error": {"rel_rmse": error},
        **rest,
    }


@pytest.mark.parametrize(("other", "met"), [(5.1, True), (4.9, False)])
def test_a_race_is_against_the_fastest_other_engine(other, met):
    records = [record(), record("spconv", (other,)), record("minkowski", (9.0,))]
    time, _ = engine.race_bounds(records, "race", least=5.0)
    assert time.met is met
    assert "faster than spconv" in time.text


def test_rounds_are_pooled_and_failed_ones_left_out():
    records = [
        record(seconds=(1.0, 1.0)),
        record(seconds=(1.2,)),
        record(seconds=(9.0,), outcome="crashed"),
        record("spconv", (6.0,)),
    ]
    time, _ = engine.race_bounds(records, "race", least=5.5)
    assert time.met
    assert "6.00 times" in time.text


def test_more_memory_than_another_engine_is_not_met():
    records = [record(memory=2e6), record("spconv", (9.0,), memory=1e6)]
    _, memory = engine.race_bounds(records, "race", least=5.0)
    assert not memory.met


def test_an_engine_without_a_time_meets_nothing():
    (bound,) = engine.race_bounds([record(outcome="wrong"), record("spconv")], "race", least=1.0)
    assert bound.met is False
    assert engine.threads_bound([record(outcome="crashed")], "threads").met is False


@pytest.mark.parametrize(("one", "met"), [(1.9, True), (1.7, False)])
def test_two_threads_against_one(one, met):
    records = [record(seconds=(one,), machine={"threads": 1}), record(machine={"threads": 2})]
    assert engine.threads_bound(records, "threads").met is met


@pytest.mark.parametrize(("seconds", "met"), [(11.0, True), (12.0, False)])
def test_the_cost_per_site(seconds, met):
    records = [record(sites=1000), record(sites=10000, seconds=(seconds,))]
    assert engine.sites_bound(records).met is met


def test_bf16_must_be_faster_and_right_enough():
    fast = record(seconds=(0.5,), error=1.0, cell={"precision": "bf16"})
    time, error = engine.bf16_bounds([record(), fast], "bf16")
    assert time.met
    assert not error.met


@pytest.fixture
def program():
    app = typer.Typer()
    app.command()(engine.main)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_an_unknown_check_is_refused(program):
    done = program("dance")
    assert done.exit_code == 2
    assert "there is no check 'dance'" in done.output


def test_the_other_checks_run_after_one_that_fails(program, monkeypatch, tmp_path):
    def broken(options):
        raise BadInput("the engine crashed")
        yield

    def sound(options):
        yield engine.Bound("1 ms", True)

    monkeypatch.setattr(engine, "CHECKS", {"broken": broken, "sound": sound})
    done = program("--out", str(tmp_path))
    assert done.exit_code == 1
    assert "broken: the engine crashed\nsound: 1 ms: met" in done.output
