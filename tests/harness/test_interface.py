"""The interface for notebooks: each function on real runs and events, from a plain script too."""

import subprocess
import sys

import numpy as np
import pytest

import harness
from backends.registry import UnknownBackend
from harness.errors import BadInput
from harness.events.native import EventWriter
from tests.harness.events.conftest import make_event


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run.jsonl"
    return harness.measure(
        "inference", engines=["sscn"], sizes=[192], batches=[1], budget=0.05, out=out
    )


def test_a_suite_is_measured_quietly_and_its_records_are_a_table(run, capfd):
    assert capfd.readouterr().out == ""
    records = harness.load_records(run)
    assert set(records["cell.map"]) == {"cold", "warm"}
    assert set(records["outcome"]) == {"ok"}


def test_a_run_is_compared_by_engine_and_two_runs_by_verdict(run):
    ranked = harness.compare_runs(run)
    assert set(ranked["engine"]) == {"sscn"}
    assert (ranked["median_s"] > 0).all()
    assert ranked["accuracy"].between(0, 1).all()
    judged = harness.compare_runs(run, run)
    assert set(judged["verdict"]) <= {"SAME", "UNCLEAR"}  # of few samples
    assert "time" in set(judged["metric"])


def test_events_are_opened_labelled_and_drawn():
    events = harness.open_events("sample", size=192)[:3]
    found = harness.predict_labels(events, batch=2)
    assert [len(each.labels) for each in found] == [len(event) for event in events]
    for each in found:
        np.testing.assert_allclose(each.probabilities.sum(1), 1, rtol=1e-5)
    alone = harness.predict_labels(events[0])[0]
    np.testing.assert_array_equal(alone.labels, found[0].labels)
    names = [
        button.label
        for button in harness.draw_event(events[0], alone.labels).layout["updatemenus"][0].buttons
    ]
    assert names == ["truth", "prediction", "wrong", "energy"]


def test_objects_have_a_readable_form():
    events = harness.open_events("sample", size=192)
    assert repr(events) == "<PackedSet sample 192 px: 256 events of 192 px>"
    assert "active voxels of 192 x 192 x 192>" in repr(events[0])
    assert repr(harness.predict_labels(events[0])[0]).startswith("<Prediction of ")


def test_bad_input_raises_one_sentence(tmp_path):
    with pytest.raises(BadInput, match=r"none\.h5"):
        harness.open_events(tmp_path / "none.h5")
    with pytest.raises(UnknownBackend, match="no engine called 'nonsense'"):
        harness.predict_labels([], engine="nonsense")
    with pytest.raises(AttributeError, match="nonsense"):
        harness.nonsense  # noqa: B018


def test_a_script_without_a_guard_opens_files_and_is_run_once(tmp_path):
    with EventWriter(tmp_path / "events.h5", 32, 3, "test") as writer:
        writer.append(make_event(60, 32, 0))
    script = tmp_path / "script.py"
    script.write_text("import harness\nprint(len(harness.open_events('events.h5')))\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
