"""Weights by name: files of canonical weights, and their refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import harness
from backends import network as networks
from backends import registry, weights
from backends.uresnet import UResNet, UResNetConfig
from harness.errors import BadInput
from harness.events import CLASSES
from harness.run.plan import with_weights
from harness.run.weight_files import TRAINED_SHA256, find_weights, read_weights
from harness.spec.cell import Cell, EventSpec, ModelSpec

SMALL = UResNetConfig(filters=4, depth=2, reps=1, classes=5)
MODEL = ModelSpec(filters=4, depth=2, reps=1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.npz"
    values = {n: v.numpy().astype(np.float16) for n, v in weights.initial(SMALL, 3).items()}
    np.savez(path, **values)
    return path


def test_sixteen_bits_are_read_exactly(file):
    read = read_weights(file)
    for name, value in weights.initial(SMALL, 3).items():
        assert read[name].dtype is torch.float32
        assert torch.equal(read[name], value.half().float())


def test_the_name_of_a_file_has_its_hash(file):
    found = find_weights(str(file))
    assert (found.model, found.dim) == (MODEL, 3)
    assert found.label == f"mine.npz@{found.sha256[:12]}"
    assert find_weights("random") is None


def test_the_packaged_weights_are_those_of_the_results():
    found = find_weights("trained")
    assert found.sha256 == TRAINED_SHA256
    assert (found.model, found.dim) == (ModelSpec(), 3)
    assert found.label == f"trained@{TRAINED_SHA256[:12]}"
    assert found.path.stat().st_size < 6_000_000


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_engines_hold_the_packaged_weights_bit_for_bit(name):
    found = registry.probe(name)
    if found.capabilities is None or found.capabilities.missing:
        pytest.skip(found.reason or "lacks a kind of layer")
    values = read_weights(find_weights("trained").path)
    device = found.capabilities.devices[0]
    backend = registry.load(name, dim=3, device=device, precision="fp32")
    built = networks.build(backend, UResNetConfig())
    if not isinstance(built, UResNet):
        pytest.skip("a network of its own")
    weights.load(built, values)
    for part, value in weights.dump(built).items():
        assert torch.equal(value.cpu(), values[part]), part


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [(192, 0.96), (512, 0.974), (768, 0.97)])
def test_the_packaged_network_is_good(size, least):
    events = harness.open_events("sample", size=size)
    shares = [
        (found.labels == event.labels)[event.labels < CLASSES].mean()
        for event, found in zip(events, harness.predict_labels(events, batch=8), strict=True)
    ]
    assert np.mean(shares) >= least


def test_cells_of_other_networks_keep_random_weights(file):
    cells = [Cell("s", "sscn", 192, 1, "forward", "cold", model=m) for m in (ModelSpec(), MODEL)]
    named = with_weights(cells, find_weights("trained"))
    assert [cell.weights.partition("@")[0] for cell in named] == ["trained", "random"]


def test_labels_of_random_weights_are_not_compared_with_the_truth(file):
    cell = Cell("s", "sscn", 192, 1, "forward", "cold", model=MODEL, events=EventSpec(count=4))
    for found in (None, find_weights("trained")):
        with pytest.raises(BadInput, match="random weights label nothing right"):
            with_weights([cell], found)


def test_single_layers_keep_random_weights(file):
    network = Cell("s", "sscn", 192, 1, "forward", "cold", model=MODEL)
    layer = replace(network, map="warm", layer="submanifold-0")
    named = with_weights([network, layer], find_weights(str(file)))
    assert [cell.weights.partition("@")[0] for cell in named] == ["mine.npz", "random"]
    assert named[0].name != network.name  # other weights, another cell


def test_cells_with_random_weights_keep_their_names():
    values = Cell("s", "sscn", 192, 1, "forward", "cold").to_json()
    assert "weights" not in values
    assert Cell.from_json(values).weights == "random"


def test_weights_name_the_activation_of_their_network(file, tmp_path):
    with np.load(file) as stored:
        values = {**stored, "slope": np.float64(0.33), "momentum": np.float64(0.1)}
    np.savez(tmp_path / "leaky.npz", **values)
    found = find_weights(str(tmp_path / "leaky.npz"))
    assert found.model == replace(MODEL, slope=0.33, momentum=0.1)
    cell = Cell("s", "sscn", 192, 1, "forward", "cold", model=MODEL)
    with pytest.raises(
        BadInput, match=r"momentum=0.1,activation=leaky_relu:0.33, and .*--network fil"
    ):
        with_weights([cell], found)
    assert with_weights([replace(cell, model=found.model)], found)[0].weights == found.label
    np.savez(tmp_path / "odd.npz", **values | {"slope": np.zeros(3, np.float32)})
    with pytest.raises(BadInput, match="slope does not fit"):
        find_weights(str(tmp_path / "odd.npz"))
    np.savez(tmp_path / "steep.npz", **values | {"slope": np.float64(7)})
    with pytest.raises(BadInput, match=r"model\.slope must be a number from 0 to 1"):
        find_weights(str(tmp_path / "steep.npz"))


def test_weights_of_another_network_are_refused(file):
    cell = Cell("s", "sscn", 192, 1, "forward", "cold")
    with pytest.raises(BadInput, match=r"4 filters, depth 2.*the suite measures.*16 filters"):
        with_weights([cell], find_weights(str(file)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as weights"),
        (b"PK\x03\x04 but no archive", "cannot be read as weights"),
        ({"linear.weight": np.zeros((5, 4), np.float32)}, "no stem.weight"),
        ({"stem.weight": np.zeros((5, 4), np.int64)}, "no canonical weights"),
        ({"stem.weight": np.array([{}], object)}, "cannot be read as weights"),
        (None, "there is no file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "other.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(BadInput, match=words) as refusal:
        find_weights(str(path))
    assert "\n" not in str(refusal.value)
