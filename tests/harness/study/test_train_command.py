"""``train`` on a user's files: curve, weights, continuation and refusals."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from harness.__main__ import main
from harness.events import open_events
from harness.events.native import EventWriter
from harness.events.predictions import read_labels
from harness.results import store
from harness.run.weight_files import find_weights
from harness.study import train_command
from tests.harness.events.conftest import make_event


def write(path, seeds, size=32, labels=None):
    with EventWriter(path, size, 3, "test") as writer:
        for seed in seeds:
            event = make_event(60, size, seed)
            writer.append(event if labels is None else replace(event, labels=labels[: len(event)]))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    return (
        write(folder / "one.h5", range(6)),
        write(folder / "two.h5", range(6, 12)),
        write(folder / "other.h5", range(12, 17)),
    )


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in arguments])
    return ended.value.code


def curve(out, column):
    rows = csv.DictReader((out / "steps.csv").read_text().splitlines())
    return [int(row[column]) for row in rows]


def test_a_training_continues_and_gives_weights_for_predictions(tmp_path, files, capfd):
    one, two, other = files
    out = tmp_path / "training"
    words = ["train", "--events", one, "--events", two, "--held-out", other, "--out", out]
    words += ["--batch", 3]
    assert not call(*words, "--minutes", 0.02)
    assert "nonzero accuracy" in capfd.readouterr().out
    first = curve(out, "step")
    assert not call(*words, "--minutes", 0.04)
    assert curve(out, "step")[: len(first)] == first
    assert len(curve(out, "step")) > len(first)
    said = capfd.readouterr().out
    assert "starts again" not in said
    records = list(store.records([out / "records.jsonl"]))
    assert [record["outcome"] for record in records] == ["ok", "ok"]

    weights = out / "weights.npz"
    assert find_weights(str(weights)).model.filters == 16
    labels = tmp_path / "labels.h5"
    assert not call("predict", other, "--weights", weights, "--out", labels)
    # The accuracies of the held-out events at the end are those of the written weights.
    assert [line for line in said.splitlines() if "accuracy" in line][-6:] == [
        line for line in capfd.readouterr().out.splitlines() if "accuracy" in line
    ]
    assert len(read_labels(labels, open_events(other), 0)) == 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--engine": "nonsense"}, "there is no engine called 'nonsense'"),
        ({"--events": "none.h5"}, "none.h5"),
        ({"--held-out": None}, "no events of 32 px; give --held-out FILE"),
        ({"--minutes": "0"}, "--minutes must be a finite number above 0"),
        ({"--out": "/dev/null/x"}, "cannot write"),
        ({"--batch": "30"}, "6 events, which do not fill a batch of 30"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, files, monkeypatch, capfd, change, words):
    monkeypatch.chdir(tmp_path)
    given = {"--events": files[0], "--held-out": files[2], "--out": "training", "--minutes": "0.01"}
    given = {name: value for name, value in (given | change).items() if value is not None}
    assert call("train", *(word for pair in given.items() for word in pair))
    said = capfd.readouterr().err.strip()
    assert words in said
    assert "Traceback" not in said


def test_files_of_several_sizes_train_one_network(tmp_path, files):
    large = write(tmp_path / "large.h5", range(20, 26), size=64)
    out = tmp_path / "training"
    words = ["train", "--events", files[0], "--events", large, "--held-out", large]
    assert not call(*words, "--out", out, "--batch", 12, "--steps", 2)
    # Each batch has all events of both files.
    assert curve(out, "sites") == [12 * 60] * 2


def test_the_simulated_events_of_the_package_train_one_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("calzone")
    pytest.importorskip("xraydb")
    monkeypatch.setattr(train_command, "SIMULATED_EVENTS", {192: 4, 768: 3})
    monkeypatch.setattr(train_command, "MOST_HELD_OUT", 2)
    out = tmp_path / "training"
    words = ["train", "--events", "simulated", "--out", out, "--batch", 5, "--steps", 1]
    assert not call(*words)
    said = capfd.readouterr().out
    assert "sample-192px: 2 events" in said
    assert "sample-768px: 2 events" in said
    assert (out / "weights.npz").exists()


def test_files_without_labels_are_refused(tmp_path, files, capfd):
    bare = write(tmp_path / "bare.h5", range(3), labels=np.full(60, 5, np.uint8))
    out = ["--held-out", files[2], "--out", tmp_path / "training"]
    assert call("train", "--events", bare, *out) == 2
    assert "no labels to train with" in capfd.readouterr().err
