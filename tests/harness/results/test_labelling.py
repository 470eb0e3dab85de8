"""Accuracies in records: how they are read, and how two runs are judged by them."""

import numpy as np
import pytest

from harness.compare.comparison import changes
from harness.results import store
from harness.results.labelling import Labelling, judge_accuracy
from harness.results.summary import summarize
from harness.results.verdict import Verdict
from harness.spec.metrics import ACCURACY


def entry(correct, labelled, *, lost=0, gained=0):
    shares = [c / n for c, n in zip(correct, labelled, strict=True)]
    return {
        "nonzero": float(np.mean(shares)),
        "voxels": sum(labelled),
        "voxel_share": sum(correct) / sum(labelled),
        "event_correct": correct,
        "event_labelled": labelled,
        "confusion": {"HIP": [3, 1, 0, 0, 0]},
        "class_accuracy": {"HIP": 0.75, "Michel": None},
        "class_purity": {"HIP": 1.0},
        "flips": lost + gained,
        "lost": lost,
        "gained": gained,
    }


def read(write_records, make_record, *entries):
    records = [make_record(accuracy=e, run=f"r{i}") for i, e in enumerate(entries)]
    return summarize(store.read(write_records(records)))


def test_a_record_gives_its_accuracy_back(write_records, make_record):
    (row,) = read(write_records, make_record, entry([90, 40], [100, 50], lost=2, gained=1))
    found = row.labelling
    assert found.nonzero == pytest.approx(0.85)
    assert found.standard_error == pytest.approx(0.05)
    assert (found.flips, found.lost, found.gained) == (3, 2, 1)
    assert found.confusion == {"HIP": [3, 1, 0, 0, 0]}
    assert found.class_accuracy == {"HIP": 0.75}


def test_records_without_an_accuracy_have_none(write_records, make_record):
    plain = make_record(backend="dense")
    frame = store.read(write_records([make_record(accuracy=entry([9], [10])), plain]))
    rows = {row.engine: row.labelling for row in summarize(frame)}
    assert rows["sscn"] is not None
    assert rows["dense"] is None


def test_events_without_a_label_do_not_count(write_records, make_record):
    (row,) = read(
        write_records, make_record, entry([9], [10]) | {"event_labelled": [0], "event_correct": [0]}
    )
    assert len(row.labelling.shares) == 0
    assert row.labelling.text == "90.00 %"


@pytest.mark.parametrize("correct", [[9, 8], [11], []])
def test_counts_that_contradict_each_other_are_left_out(write_records, make_record, correct):
    path = write_records([make_record(accuracy=entry([9], [10]) | {"event_correct": correct})])
    with pytest.warns(store.BadRecord, match=r":1: accuracy\.event_correct: does not fit"):
        assert store.read(path).empty


def labelling(correct, labelled, *, lost=0, gained=0):
    return Labelling.of(
        {
            f"accuracy.{k}": [v]
            for k, v in entry(correct, labelled, lost=lost, gained=gained).items()
        },
        0,
    )


def test_one_event_is_judged_by_its_voxels():
    before = labelling([1900], [2000])
    assert judge_accuracy(before, labelling([1899], [2000], lost=1)).verdict is Verdict.SAME
    worse = judge_accuracy(before, labelling([1870], [2000], lost=40, gained=10))
    assert worse.verdict is Verdict.WORSE
    assert "50 voxels" in worse.test
    # As many voxels of difference, nearly as many gained as lost.
    unsure = judge_accuracy(before, labelling([1894], [2000], lost=28, gained=22))
    assert unsure.verdict is Verdict.UNCLEAR
    assert "harness run accuracy" in unsure.reason


def test_the_direction_follows_the_sides():
    low, high = labelling([1870], [2000], lost=40, gained=10), labelling([1900], [2000])
    assert judge_accuracy(low, high).verdict is Verdict.BETTER


def test_many_events_are_judged_one_by_one():
    rng = np.random.default_rng(0)
    labelled = rng.integers(500, 3000, 64)
    correct = (labelled * rng.normal(0.95, 0.02, 64).clip(0, 1)).astype(int)
    before = labelling(correct.tolist(), labelled.tolist())
    worse = (correct - labelled * 0.004 * rng.uniform(0.5, 1.5, 64)).astype(int)
    found = judge_accuracy(before, labelling(worse.tolist(), labelled.tolist()))
    assert found.verdict is Verdict.WORSE
    assert "64 events" in found.test


def test_false_alarms_over_events_are_rare():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        labelled = rng.integers(500, 3000, 32)
        base = (labelled * 0.95).astype(int)
        one, other = (base + rng.integers(-40, 41, 32) for _ in range(2))
        verdict = judge_accuracy(
            labelling(one.tolist(), labelled.tolist()), labelling(other.tolist(), labelled.tolist())
        ).verdict
        alarms += verdict in (Verdict.WORSE, Verdict.BETTER)
    assert alarms <= 12  # 1 % of 400 is 4; 12 has a probability of one in a thousand


def test_a_comparison_of_two_runs_names_the_accuracy(write_records, make_record):
    before = read(write_records, make_record, entry([1900], [2000]))
    after = read(write_records, make_record, entry([1850], [2000], lost=50))
    found = {c.metric: c.judgement.verdict for c in changes(before, after)}
    assert found[ACCURACY] is Verdict.WORSE
