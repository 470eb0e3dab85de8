"""Weights go into every engine and come back bit by bit, through files and from the study."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from backends import cases, command, network, registry, weight_files, weights
from backends.agreement import compare
from backends.contract import Kind
from backends.float64_reference import compute_reference
from backends.uresnet import UResNet, UResNetConfig

ROOT = Path(__file__).resolve().parents[2]
STUDY_NETWORK = UResNetConfig(filters=4, depth=3, reps=2)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_study_s_network_has_2741477_parameters():
    backend = registry.load("sscn", dim=3, device="cpu", precision="fp32")
    assert network.parameters(UResNet(backend, UResNetConfig())) == 2_741_477
    wide = UResNet(backend, UResNetConfig(filters=32))
    assert network.parameters(wide) == 10_956_229


def test_the_study_s_dense_network_has_50320383_parameters():
    backend = registry.load("dense-study", dim=3, device="cpu", precision="fp32")
    built = network.build(backend, UResNetConfig())
    assert network.parameters(built) == 50_320_383
    assert not network.has_reference(built)


def test_an_engines_own_network_is_initialised_reproducibly():
    backend = registry.load("dense-study", dim=2, device="cpu", precision="fp32")
    batch = cases.random_sites(2)
    results = []
    for _ in range(2):
        built = network.build(backend, UResNetConfig(filters=2, depth=2))
        network.reset(built, {})
        x = built.tensor(batch.sites, batch.features, batch.spatial_size, batch.batch_size)
        results.append(built(x))
    assert torch.equal(*results)
    assert results[0].shape == (len(batch.sites), 5)


def test_round_trip_is_exact(arithmetic, dim):
    values = weights.initial(cases.SMALL, dim)
    built = cases.network_on(arithmetic.load(dim), cases.SMALL, values)
    back = weights.dump(built)
    assert same({name: value.to(values[name].dtype) for name, value in back.items()}, values)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_layouts_invert_each_other(engine, data):
    dims = engine.capabilities.dims
    dim = data.draw(st.sampled_from(dims))
    kind, size = data.draw(
        st.sampled_from([(Kind.SUBMANIFOLD, 3), (Kind.STRIDED, 2), (Kind.INVERSE, 2)])
    )
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)), *[size] * dim)
    weight = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    backend = engine.load(dim)
    back = backend.from_native(kind, backend.to_native(kind, weight))
    assert torch.equal(back.reshape(shape), weight)


def test_a_network_trained_on_one_engine_runs_on_any_other(engine):
    batch, values, _ = cases.with_reference("random_sites", 3, cases.SMALL, "step")
    trained = cases.network_on(engine.load(3), cases.SMALL, values)
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-3)
    for _ in range(3):
        cases.step(trained, batch)
        optimiser.step()
    carried = weights.dump(trained)
    expected = compute_reference(cases.SMALL, carried, batch, step=False)
    backend = registry.load("sscn", dim=3, device="cpu", precision="fp32")
    other = cases.network_on(backend, cases.SMALL, carried)
    found = compare(expected, "fp32", cases.forward(other, batch).logits)
    assert found.right, found.reason
    assert not torch.equal(carried["stem.weight"], values["stem.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_files_keep_every_bit(tmp_path, suffix, dim):
    values = weights.initial(cases.SMALL, dim)
    path = tmp_path / f"weights{suffix}"
    weight_files.write(path, values)
    assert same(weight_files.read(path), values)
    assert weight_files.network_size(values) == (cases.SMALL, dim)


def test_an_engine_s_own_state_dict_is_read_and_written(engine, tmp_path):
    config = UResNetConfig(filters=3, depth=2, reps=2, classes=4)
    values = weights.initial(config, 3)
    path = tmp_path / "native.pt"
    weight_files.write(path, values, engine.name)
    state = torch.load(path, weights_only=True)
    built = UResNet(engine.load(3), config)
    built.load_state_dict(state)
    assert same(weights.dump(built), values)
    assert same(weight_files.read(path, engine.name), values)
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"step": 3, "network": state, "random": {}}, checkpoint)
    assert same(weight_files.read(checkpoint, engine.name), values)


def study_state(values, config, dim):
    """Name canonical weights as the study's SparseConvNet network does, in its layout."""
    state = {}

    def put(name, value):
        state[f"module.{name}"] = value

    def convolution(name, weight, inverse=False):
        flat = weight.flatten(2)
        put(f"{name}.weight", flat.permute(2, 0, 1) if inverse else flat.permute(2, 1, 0))

    def norm(name, ours):
        for part in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{part}", values[f"{ours}.{part}"])

    def block(name, ours):
        if f"{ours}.shortcut.weight" in values:
            put(f"{name}.0.weight", values[f"{ours}.shortcut.weight"].t())
        for index, part in enumerate(("norm1", "conv1", "norm2", "conv2")):
            if part.startswith("norm"):
                norm(f"{name}.1.{index}", f"{ours}.{part}")
            else:
                convolution(f"{name}.1.{index}", values[f"{ours}.{part}.weight"])

    def level(name, ours, depth):
        position = 0
        for rep in range(config.reps):
            block(f"{name}.{position}", f"{ours}.encoder.{rep}")
            position += 2
        if depth == config.depth:
            return
        norm(f"{name}.{position}.1.0", f"{ours}.down_norm")
        convolution(f"{name}.{position}.1.1", values[f"{ours}.down.weight"])
        level(f"{name}.{position}.1.2", f"{ours}.below", depth + 1)
        norm(f"{name}.{position}.1.3", f"{ours}.up_norm")
        convolution(f"{name}.{position}.1.4", values[f"{ours}.up.weight"], inverse=True)
        position += 2
        for rep in range(config.reps):
            block(f"{name}.{position}", f"{ours}.decoder.{rep}")
            position += 2

    convolution("sparseModel.1", values["stem.weight"])
    level("sparseModel.2", "unet", 1)
    norm("sparseModel.3", "norm")
    put("linear.weight", values["linear.weight"])
    put("linear.bias", values["linear.bias"])
    return state


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("reps", [1, 2, 3])
def test_a_checkpoint_of_the_study_loads(tmp_path, dim, depth, reps):
    config = UResNetConfig(filters=3, depth=depth, reps=reps)
    values = weights.initial(config, dim, seed=3)
    state = study_state(values, config, dim)
    path = tmp_path / "snapshot-100.ckpt"
    torch.save({"global_step": 100, "optimizer": {"state": {}}, "state_dict": state}, path)
    assert same(weight_files.read(path, "study"), values)
    grouped = {
        name: value.unsqueeze(1) if value.ndim == 3 else value for name, value in state.items()
    }
    assert same(weight_files.from_study(grouped), values)


def test_the_study_s_network_itself_agrees_with_its_weights_here():
    """Build the original network with SparseConvNet, and compare logits on the same sites."""
    scn = pytest.importorskip("sparseconvnet")
    torch.manual_seed(0)
    m, depth = STUDY_NETWORK.filters, STUDY_NETWORK.depth
    size = torch.LongTensor([16] * 3)
    planes = [m * (level + 1) for level in range(depth)]
    original = torch.nn.Module()
    original.sparseModel = scn.Sequential().add(
        scn.InputLayer(3, size, mode=3)).add(
        scn.SubmanifoldConvolution(3, 1, m, 3, False)).add(
        scn.UNet(3, 2, planes, residual_blocks=True, downsample=[2, 2])).add(
        scn.BatchNormReLU(m)).add(
        scn.OutputLayer(3))  # fmt: skip
    original.linear = torch.nn.Linear(m, 5)
    original.eval()
    batch = cases.random_sites(3)
    coordinates = batch.sites.roll(-1, 1).long()
    with torch.no_grad():
        logits = original.linear(original.sparseModel((coordinates, batch.features)))
    values = weight_files.from_study(original.state_dict())
    found = compare(compute_reference(STUDY_NETWORK, values, batch, step=False), "fp32", logits)
    assert found.right, found.reason


def spoil(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("content", "layout", "words"),
    [
        (b"not a file of tensors", "canonical", "cannot be read as weights"),
        ([1, 2], "canonical", "holds no state dict"),
        ({"x": torch.zeros(1)}, "canonical", "name the layout they are in with --from"),
        (
            {"sparseModel.1.weight": torch.zeros(1)},
            "canonical",
            "network: --from study",
        ),
        (
            {"stem.native.weight": torch.zeros(1)},
            "canonical",
            "on an engine: --from ENGINE",
        ),
        ({"x": torch.zeros(1)}, "study", "not a state dict of the study's SparseConvNet network"),
        ({"x": torch.zeros(1)}, "sscn", "not the state dict of a UResNet on sscn"),
        ({"x": torch.zeros(1)}, "nonsense", "there is no engine called 'nonsense'"),
    ],
)
def test_files_that_hold_no_weights_end_with_one_sentence(tmp_path, content, layout, words):
    path = tmp_path / "in.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    ran = CliRunner().invoke(
        command.app, ["convert", str(path), str(tmp_path / "out.npz"), "--from", layout]
    )
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def changed(name, value):
    """Weights of which one entry is another value, or has another name."""
    values = dict(weights.initial(cases.SMALL, 3))
    before = values.pop(name)
    return values | ({value: before} if isinstance(value, str | int) else {name: value})


STRANGE = {
    "a number as a name": (changed("stem.weight", 7), "no state dict"),
    "two hundred levels": (
        changed("unet.encoder.0.norm1.bias", "unet" + ".below" * 200 + ".norm1.bias"),
        "201 levels",
    ),
    "sparse": (changed("norm.weight", torch.ones(4).to_sparse()), "not a dense one"),
    "without data": (changed("norm.weight", torch.ones(4, device="meta")), "not a dense one"),
    "complex": (changed("norm.weight", torch.ones(4, dtype=torch.complex64)), "real numbers"),
    "whole numbers": (changed("norm.weight", torch.ones(4, dtype=torch.int64)), "real numbers"),
    "more elements than numbers": (
        changed("stem.weight", torch.zeros(1).expand(2**40)),
        "more elements than the file holds numbers",
    ),
    "no dimension": (changed("stem.weight", torch.zeros(())), "not the weights of a UResNet"),
    "no filter": (changed("stem.weight", torch.zeros(0, 1, 3, 3, 3)), "not the weights"),
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.parametrize("layout", ["canonical", "study", "sscn"])
def test_strange_entries_are_refused_before_anything_is_computed(tmp_path, case, layout):
    state, words = STRANGE[case]
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(weight_files.InvalidWeights) as refusal:
        weight_files.read(tmp_path / "in.pt", layout)
    assert "\n" not in str(refusal.value)
    if layout == "canonical":
        assert words in str(refusal.value)


def test_a_changed_number_is_noticed(tmp_path):
    path = tmp_path / "in.pt"
    values = weights.initial(cases.SMALL, 3)
    torch.save(values, path)
    content = bytearray(path.read_bytes())
    place = content.index(values["stem.weight"].numpy().tobytes()[:64])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(weight_files.InvalidWeights, match="checksum"):
        weight_files.read(path)


def test_a_damaged_convolution_of_the_study_is_refused(tmp_path):
    config = UResNetConfig(filters=3, depth=2, reps=1)
    state = study_state(weights.initial(config, 3), config, 3)
    for name, value in {
        "module.sparseModel.1.weight": torch.zeros(27),
        "module.sparseModel.2.0.1.1.weight": torch.zeros(26, 3, 3),
        "module.sparseModel.2.2.1.1.weight": torch.zeros(8, 18),
        "module.sparseModel.2.4.0.weight": torch.zeros(18),
    }.items():
        assert name in state
        torch.save(state | {name: value}, tmp_path / "in.pt")
        with pytest.raises(weight_files.InvalidWeights):
            weight_files.read(tmp_path / "in.pt", "study")


def test_weights_that_do_not_fit_are_refused():
    values = weights.initial(cases.SMALL, 3)
    backend = registry.load("sscn", dim=3, device="cpu", precision="fp32")
    built = UResNet(backend, cases.SMALL)
    with pytest.raises(ValueError, match=r"no stem\.weight"):
        weights.load(built, {n: v for n, v in values.items() if n != "stem.weight"})
    with pytest.raises(ValueError, match="has shape"):
        weights.load(built, spoil(values, **{"stem.weight": torch.zeros(4, 2, 3, 3, 3)}))
    with pytest.raises(ValueError, match=r"this network has no extra"):
        weights.load(built, spoil(values, extra=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"gave no gradient to stem\.weight"):
        weights.gradients(built)


def test_the_command_converts(tmp_path):
    values = weights.initial(cases.SMALL, 3)
    source, native, back = (tmp_path / name for name in ("a.npz", "b.pt", "c.npz"))
    weight_files.write(source, values)
    words = [sys.executable, "-m", "harness", "weights", "convert"]
    first = subprocess.run(
        [*words, source, native, "--to", "sscn"], capture_output=True, text=True, cwd=ROOT
    )
    assert first.returncode == 0, first.stderr
    assert "a 3D UResNet, 4 filters, depth 3, 5 classes" in first.stdout
    second = CliRunner().invoke(command.app, ["convert", str(native), str(back), "--from", "sscn"])
    assert second.exit_code == 0, second.stderr
    assert same(weight_files.read(back), values)


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("name", ["pipe.pt", "folder.npz", "n" * 252 + ".npz", "none/a.pt"])
def test_a_target_that_cannot_be_written_is_one_sentence(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.npz").mkdir()
    values = weights.initial(cases.SMALL, 3)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(weight_files.InvalidWeights) as caught:
        weight_files.write(tmp_path / name, values)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_a_full_disk_leaves_no_partial_weights(tmp_path, suffix):
    source = tmp_path / "source.npz"
    weight_files.write(source, weights.initial(cases.SMALL, 3))
    target = tmp_path / f"target{suffix}"
    done = subprocess.run(
        [sys.executable, "-m", "harness", "weights", "convert", str(source), str(target)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=small_files,
    )
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_of_python_objects_is_refused_without_advice_to_load_it(tmp_path):
    path = tmp_path / "objects.pt"
    torch.save({"network": Path("anything")}, path)
    with pytest.raises(weight_files.InvalidWeights) as refusal:
        weight_files.read(path)
    assert "Python objects" in str(refusal.value)
    assert "weights_only" not in str(refusal.value)
