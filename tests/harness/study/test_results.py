"""Tables and sentences of the page, from synthetic records and predictions."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.events import Event
from harness.results import store
from harness.results.summary import summarize
from harness.run.job import Job
from harness.run.rounds import write_record
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.spec.cell import Cell
from harness.study import accuracy_sections, cost_sections, published, sweeps, tables
from harness.study.cells import DENSE, TABLE
from harness.study.definition import Study
from harness.study.predictions import Predicted, load_predictions, save_predictions, step_of
from harness.study.results import Evaluation, read_results
from harness.study.scales import SPARSE, HeldOut, Training

MB = 1_000_000


def measured(tmp_path, *cells):
    """Records of (suite, backend, size, batch, phase, seconds or None, bytes), pooled."""
    return summarize(records(tmp_path, *cells))


def records(tmp_path, *cells):
    path = tmp_path / "records.jsonl"
    for suite, backend, size, batch, phase, seconds, memory in cells:
        cell = Cell(suite, backend, size, batch, phase, "cold")
        entries = {"outcome": "out-of-memory", "reason": "too large"}
        if seconds is not None:
            entries = {
                "outcome": "ok",
                "reason": "",
                "sites": 1000 * batch,
                "host_seconds": [seconds] * 3,
                "memory": {"baseline_bytes": 50 * MB, "peak_rss_bytes": 50 * MB + memory},
            }
        task = Task(Job(cell), 0, EngineSource(Path(), "abcdef", False))
        write_record(path, task, entries, "run", 0)
    return store.read(path)


def test_table_2_has_measured_and_published_numbers(tmp_path):
    frame = records(
        tmp_path,
        (TABLE, "sscn", 192, 4, "forward", 0.05, 145 * MB),  # and 50 MB before the call
        (TABLE, "sscn", 768, 64, "step", None, 0),
    )
    memory = tables.total_memory(frame, "cpu")
    table = tables.cost_table(summarize(frame), memory, "cpu").set_index(["size [px]", "quantity"])
    time = table.loc[(192, "time")]
    assert (time["published"], time["measured"]) == (0.25, 0.05)
    assert time["published over measured"] == pytest.approx(5)
    assert table.loc[(192, "memory"), "published over measured"] == pytest.approx(570 / 195)
    lost = table.loc[(768, "time")]
    assert lost["published"] == 47.0
    assert np.isnan(lost["measured"])
    assert lost["outcome"] == "out-of-memory"


def test_the_published_table_is_complete():
    assert len(published.TABLE_2) == 4 * 5 + 4 * 4
    assert published.published("dense", "cuda", 192, 4, "forward", "memory") == 16e9
    assert published.published("dense", "cpu", 192, 4, "forward", "time") is None
    ratio = {
        quantity: published.published("dense", "cuda", 192, 4, "forward", quantity)
        / published.published("sparse", "cuda", 192, 4, "forward", quantity)
        for quantity in ("memory", "time")
    }
    assert round(ratio["memory"]) == published.FACTORS[3]["memory"]
    assert round(ratio["time"]) == published.FACTORS[3]["time"]


def test_factors_compare_dense_and_sparse_on_the_same_configuration(tmp_path):
    cells = measured(
        tmp_path,
        (DENSE, "sscn", 32, 4, "forward", 0.1, 10 * MB),
        (DENSE, "dense", 32, 4, "forward", 2.0, 400 * MB),
        (DENSE, "sscn", 64, 4, "forward", 0.2, 20 * MB),
        (DENSE, "dense", 64, 4, "forward", 12.0, 3000 * MB),
        (DENSE, "sscn", 192, 4, "forward", 0.3, 30 * MB),
        (DENSE, "dense", 192, 4, "forward", None, 0),
    )
    table = tables.factor_table(cells, "sscn").set_index("size [px]")
    assert table["time factor"].tolist()[:2] == pytest.approx([20, 60])
    assert table["memory factor"].tolist()[:2] == pytest.approx([40, 150])
    assert np.isnan(table.loc[192, "time factor"])
    said = cost_sections.factor_sentence(table.reset_index(), 3)
    assert "364×" in said and "33×" in said
    assert "gave no dense time; for the largest configuration with one (64 px, batch 4):" in said
    assert "dense 150× memory, 60× time" in said


def test_factors_for_the_published_configuration_are_preferred(tmp_path):
    cells = measured(
        tmp_path,
        (DENSE, "sscn", 192, 4, "forward", 0.5, 30 * MB),
        (DENSE, "dense", 192, 4, "forward", 5.0, 300 * MB),
    )
    said = cost_sections.factor_sentence(tables.factor_table(cells, "sscn"), 3)
    assert "for the same size and batch: dense 10× memory, 10× time" in said


def sweep(**columns):
    table = pd.DataFrame({"sites": 0, "bytes": None, "outcome": "ok"} | columns)
    return sweeps.Sweep("name", "along", "fixed", table)


def test_the_exponents_of_a_sweep():
    found = sweep(
        x=[1.0, 2.0, 4.0, 8.0],
        engine="sscn",
        phase="step",
        seconds=[0.1, 0.2, 0.4, 0.8],
    )
    law = found.fit("sscn", "step", "seconds")
    assert law is not None and law.exponent == pytest.approx(1.0)
    assert found.fit_table()["exponent"].tolist() == pytest.approx([1.0])
    assert found.fit("sscn", "forward", "seconds") is None


def occupancies(sparse, dense):
    x = [0.001, 0.01, 0.1, 1.0]
    return sweep(
        x=x * 2,
        engine=["sscn"] * 4 + ["dense"] * 4,
        phase="forward",
        seconds=[sparse * v for v in x] + [dense] * 4,
    )


def test_the_crossover_is_where_the_curves_cross():
    found = sweeps.find_crossover(occupancies(10, 1), "sscn", "dense", "forward")
    assert found is not None
    assert found.at == pytest.approx(0.1, rel=1e-6)
    assert "faster than sscn from 10 %" in cost_sections.crossover_sentence(
        found, "inference", "sscn"
    )


def test_dense_may_never_be_faster_or_be_faster_from_the_start():
    never = sweeps.find_crossover(occupancies(1, 2), "sscn", "dense", "forward")
    assert never == sweeps.Crossover(None)
    assert "never" in cost_sections.crossover_sentence(never, "inference", "sscn")
    always = sweeps.find_crossover(occupancies(1e6, 2), "sscn", "dense", "forward")
    assert always == sweeps.Crossover(0.001, True)
    assert "already at 0.1 %" in cost_sections.crossover_sentence(always, "inference", "sscn")


def test_there_is_no_crossover_without_measurements():
    found = sweeps.find_crossover(occupancies(1, 2), "sscn", "dense", "step")
    assert found is None
    assert cost_sections.crossover_sentence(found, "training", "sscn") == ""


def test_the_published_factors_in_2d_are_not_given_a_configuration_they_do_not_have(tmp_path):
    table = pd.DataFrame(
        [["dense", 2, 192, 4, "test", 3.0, 9.0]],
        columns=[
            "dense engine",
            "dim",
            "size [px]",
            "batch",
            "pass",
            "time factor",
            "memory factor",
        ],
    )
    said = cost_sections.factor_sentence(table, 2)
    assert "93× memory and 3.1× time" in said
    assert "same size" not in said
    assert "the largest measured configuration (192 px, batch 4): dense 9× memory, 3× time" in said


TRAINING = Training("sparse 192 px", SPARSE, 192, batch=4, steps=10)


def evaluated(pairs):
    events = [
        Predicted(
            Event(
                np.arange(3 * len(truth), dtype=np.int32).reshape(-1, 3),
                np.ones(len(truth), np.float32),
                np.array(truth, np.uint8),
                192,
                "synthetic",
            ),
            np.array(predicted),
        )
        for truth, predicted in pairs
    ]
    return Evaluation(TRAINING, HeldOut(192, len(pairs)), events)


def test_the_tables_of_a_test():
    test = evaluated([([0, 0, 1, 2], [0, 0, 1, 0]), ([4, 3], [4, 4])])
    row = tables.accuracy_table([test]).iloc[0]
    assert row["nonzero accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert row["spread over events"] == pytest.approx(1 / 8)
    classes = tables.class_table([test]).set_index("class")
    assert classes.loc["Michel", ["accuracy", "purity", "IoU"]].tolist() == [1.0, 0.5, 0.5]
    assert classes.loc["shower", "accuracy"] == 0.0
    shares = tables.confusion_table(test)
    assert shares.loc["shower", "HIP"] == 1.0
    assert accuracy_sections.confusion_sentence(shares).startswith(
        "The largest confusion: 100.0 % of"
    )


def test_the_michel_table_starts_with_the_published_numbers():
    table = tables.michel_table([evaluated([([1, 4], [1, 1])])])
    assert table.iloc[0]["efficiency"] == 0.939
    assert table.iloc[1]["true clusters"] == 0


def test_predictions_are_read_event_by_event_and_damaged_files_are_named(tmp_path):
    class Events(list):
        sha256 = "this set"

    events = Events(t.event for t in evaluated([([0, 1], [0, 1]), ([], []), ([2], [3])]).events)
    made = [np.array([0, 1]), np.array([], int), np.array([3])]
    save_predictions(tmp_path / "p.npz", made, "this set", 7)
    assert step_of(tmp_path / "p.npz") == 7
    back = list(load_predictions(tmp_path / "p.npz", events, 5))
    assert [p.predicted.tolist() for p in back] == [[0, 1], [], [3]]
    whole = (tmp_path / "p.npz").read_bytes()
    for length in (0, 30, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.npz"
        cut.write_bytes(whole[:length])
        assert step_of(cut) == -1
        with pytest.raises(ValueError, match="is damaged; repeat the study's command"):
            list(load_predictions(cut, events, 5))
    events.sha256 = "another set"
    with pytest.raises(ValueError, match="other events"):
        list(load_predictions(tmp_path / "p.npz", events, 5))


def test_predictions_of_other_classes_or_lengths_are_refused(tmp_path):
    class Events(list):
        sha256 = "this set"

    events = Events(t.event for t in evaluated([([0, 1], [0, 1]), ([2], [3])]).events)
    path = tmp_path / "p.npz"
    for made in ([np.array([0, 1]), np.array([5])], [np.array([0]), np.array([1, 3])]):
        save_predictions(path, made, "this set", 7)
        with pytest.raises(ValueError, match="other events"):
            list(load_predictions(path, events, 5))
    np.savez(path, counts=np.array([2, 2]), classes=np.zeros(3, np.uint8), sha256="", step=7)
    assert step_of(path) == -1


@pytest.mark.parametrize("value", ["", "inf", "nan"])
def test_steps_without_a_number_are_damaged(tmp_path, value):
    study = Study(tmp_path, "smoke")
    training = study.resolved_scale.trainings[0]
    folder = study.training_folder(training)
    folder.mkdir(parents=True)
    columns = "step,events,sites,loss,accuracy,step_seconds,seconds,joules"
    (folder / "steps.csv").write_text(f"{columns}\n1,{value},5,1,0.5,0.1,0.1,\n")
    (folder / "held_out.csv").write_text("step,seconds,joules,events,accuracy,spread\n")
    found = read_results(study)
    assert found.curves == []
    assert "steps.csv is damaged" in found.problems[0]


def test_predictions_with_a_member_that_is_no_array_are_damaged(tmp_path):
    save_predictions(tmp_path / "p.npz", [np.array([0, 1])], "this set", 7)
    with zipfile.ZipFile(tmp_path / "p.npz") as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "q.npz", "w") as target:
        for name, content in members.items():
            target.writestr(name, b"bytes" if name == "counts.npy" else content)
    assert step_of(tmp_path / "q.npz") == -1
