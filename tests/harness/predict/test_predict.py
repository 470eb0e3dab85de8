"""Labels of a user's own events: the same from every format, engine and sitting."""

import h5py
import numpy as np
import pytest
import torch

from backends import weights
from backends.contract import SparseBatch
from backends.float64_reference import compute_reference
from backends.uresnet import UResNetConfig
from harness.__main__ import main
from harness.errors import BadInput
from harness.events import collate, open_events
from harness.events.native import EventWriter
from harness.events.predictions import read_labels
from harness.predict import prediction
from harness.predict.prediction import Predictor
from harness.run.weight_files import find_weights
from tests.harness.events import files
from tests.harness.events.conftest import make_event

CONFIG = UResNetConfig(filters=4, depth=3, reps=1, classes=5)
COUNTS = (60, 25, 0, 80, 40, 30, 55)


@pytest.fixture(scope="module")
def values():
    return weights.initial(CONFIG, 3)


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("weights") / "small.npz"
    np.savez(path, **{name: value.numpy() for name, value in values.items()})
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "events.h5"
    with EventWriter(path, 32, 3, "test") as writer:
        for seed, count in enumerate(COUNTS):
            writer.append(make_event(count, seed=seed))
    return path


@pytest.fixture(autouse=True)
def _keep_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, arguments)])
    return ended.value.code


def expected(values, event):
    arrays = collate([event])
    batch = SparseBatch(
        torch.from_numpy(arrays["sites"]).int(),
        torch.from_numpy(arrays["features"]),
        None,
        event.size,
        1,
    )
    return compute_reference(CONFIG, values, batch, step=False).logits


@pytest.mark.parametrize("name", ["sscn", "spconv"])
def test_labels_and_probabilities_are_those_of_the_float64_network(
    tmp_path, source, weight_file, values, name, capsys
):
    out = tmp_path / "labels.h5"
    assert not call(source, "--weights", weight_file, "--out", out, "--engine", name)
    assert "nonzero accuracy" in capsys.readouterr().out
    events = open_events(source)
    with h5py.File(out) as file:
        assert file["offsets"][:].tolist() == [0, *np.cumsum(COUNTS).tolist()]
        probabilities = file["probabilities"][:]
        assert file.attrs["weights"].startswith("small.npz@")
    for index, event in enumerate(events):
        labels = read_labels(out, events, index)
        assert len(labels) == len(event)
        if not len(event):
            continue
        logits = expected(values, event)
        start = int(np.cumsum((0, *COUNTS))[index])
        own = probabilities[start : start + len(event)]
        np.testing.assert_allclose(own, logits.softmax(1).numpy(), atol=1e-4)
        assert labels.tolist() == own.argmax(1).tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.h5"]


def test_the_formats_of_one_event_give_the_same_labels(tmp_path, weight_file):
    event = make_event(200, size=768, seed=5)
    files.write_larcv2(tmp_path / "a.root", [event])
    files.write_larcv3(tmp_path / "b.h5", [event])
    files.write_pilarnet_m(tmp_path / "c.h5", [event], revision=2)
    found = []
    for name in ("a.root", "b.h5", "c.h5"):
        out = tmp_path / f"labels-{name}.h5"
        assert not call(tmp_path / name, "--weights", weight_file, "--out", out)
        events = open_events(tmp_path / name)
        voxels = events[0].voxels.tolist()
        found.append(dict(zip(map(tuple, voxels), read_labels(out, events, 0), strict=True)))
    assert len(found[0]) == 200
    assert found[0] == found[1] == found[2]


class Stopped(Exception):
    pass


def test_a_stopped_prediction_continues_to_the_same_file(tmp_path, source, weight_file):
    found = find_weights(str(weight_file))
    predictor = Predictor.load("sscn", {}, found.path, found.label, device="cpu", precision="fp32")
    passes = []
    whole = Predictor.probabilities

    class Counted(Predictor):
        def probabilities(self, events):
            passes.append(len(events))
            return whole(self, events)

    counted = Counted(**vars(predictor))
    events = open_events(source)

    def stop(done):
        if done >= 4:
            raise Stopped

    out, undisturbed = tmp_path / "labels.h5", tmp_path / "undisturbed.h5"
    with pytest.raises(Stopped):
        prediction.predict(counted, events, out, 2, stop)
    assert passes == [2, 2]
    assert not out.exists()
    prediction.predict(counted, events, out, 2, lambda done: None)
    assert passes == [2, 2, 2, 1]  # the first four events were not labelled again
    prediction.predict(counted, events, undisturbed, 2, lambda done: None)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_parts_of_other_settings_are_not_used(tmp_path, source, weight_file):
    found = find_weights(str(weight_file))
    predictor = Predictor.load("sscn", {}, found.path, found.label, device="cpu", precision="fp32")

    def stop(done):
        raise Stopped

    out = tmp_path / "labels.h5"
    with pytest.raises(Stopped):
        prediction.predict(predictor, open_events(source), out, 4, stop)
    prediction.predict(predictor, open_events(source), out, 3, lambda done: None)
    assert len(read_labels(out, open_events(source), 0)) == COUNTS[0]


def test_events_without_labels_have_no_accuracy(tmp_path, weight_file, capsys):
    path = tmp_path / "events.h5"
    with EventWriter(path, 32, 3, "test") as writer:
        event = make_event(30)
        writer.append(event.__class__(**{**vars(event), "labels": np.full(30, 5, np.uint8)}))
    assert not call(path, "--weights", weight_file, "--out", tmp_path / "labels.h5")
    assert "no labels to compare with" in capsys.readouterr().out


def test_predictions_of_other_events_are_refused(tmp_path, source, weight_file):
    out = tmp_path / "labels.h5"
    assert not call(source, "--weights", weight_file, "--out", out)
    with pytest.raises(BadInput, match="predictions of other events"):
        read_labels(out, open_events("sample", size=192), 0)
    out.write_bytes(out.read_bytes()[:3000])
    with pytest.raises(BadInput, match="is damaged"):
        read_labels(out, open_events(source), 0)
    with pytest.raises(BadInput, match="no file of predictions"):
        read_labels(source, open_events(source), 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "random"), "random weights label nothing right"),
        (("--weights", "none.npz"), "there is no file none.npz"),
        (("--engine", "nonsense"), "there is no engine called 'nonsense'"),
        (("--precision", "fp16"), "no fp16 on cpu"),
        (("--out", "/dev/null"), "no regular file"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    tmp_path, source, weight_file, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    usual = {"--weights": str(weight_file), "--out": "labels.h5"}
    given = usual | dict([arguments])
    assert call(source, *(word for pair in given.items() for word in pair)) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said


def test_the_page_shows_the_prediction_beside_the_truth(tmp_path, source, weight_file):
    out = tmp_path / "labels.h5"
    assert not call(source, "--weights", weight_file, "--out", out)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("events", "view", str(source), "--event", "3", "--predictions", str(out)),
                *("--out", str(tmp_path / "event.html")),
            ]
        )
    assert not ended.value.code
    page = (tmp_path / "event.html").read_text()
    for button in ("truth", "prediction", "wrong", "energy"):
        assert f'"label":"{button}"' in page
    assert "of the voxels labelled right" in page
    assert (tmp_path / "event.png").stat().st_size > 10_000
