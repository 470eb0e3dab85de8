"""Checkpoints of SPINE's UResNet: converted exactly, and the same logits as in SPINE itself."""

import pytest
import torch

from backends import registry, weight_files, weights
from backends.network_spec import parse_network
from backends.spine_checkpoints import from_spine, to_spine
from backends.uresnet import UResNet, UResNetConfig
from backends.weights import InvalidWeights

SMALL = UResNetConfig(filters=4, depth=3, reps=2, classes=2, in_channels=2)


@pytest.fixture
def state(dim):
    return to_spine(weights.initial(SMALL, dim), SMALL)


def test_a_checkpoint_and_back_keeps_every_bit(tmp_path, state, dim):
    path, target = tmp_path / "snapshot.ckpt", tmp_path / "back.pt"
    checkpoint = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(checkpoint | {"global_step": 3, "optimizer": {}}, path)
    values = weight_files.read(path, "spine")
    expected = UResNetConfig(4, 3, 2, 2, 2, slope=0.33)
    assert weight_files.network_size(values) == (expected, dim)
    initial = weights.initial(SMALL, dim)
    assert all(torch.equal(values[name], value) for name, value in initial.items())
    weight_files.write(target, values, "spine")
    again = torch.load(target, weights_only=True)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_the_network_option_names_what_shapes_do_not_show(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "snapshot.ckpt")
    network = parse_network("filters=4,depth=3,classes=2,inputs=2,activation=relu,eps=1e-5")
    values = weight_files.read(tmp_path / "snapshot.ckpt", "spine", network)
    weight_files.write(tmp_path / "canonical.npz", values)
    found = weight_files.read(tmp_path / "canonical.npz")
    assert weight_files.network_size(found)[0] == network
    with pytest.raises(InvalidWeights, match="a network with filters 4, not 32"):
        weight_files.read(tmp_path / "snapshot.ckpt", "spine", parse_network("spine"))


KERNEL = "backbone.encoder.encoding_block.1.0.conv1.kernel"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({KERNEL: None}, f"lacks {KERNEL}"),
        ({KERNEL: torch.zeros(27, 8, 9)}, rf"{KERNEL} has shape \(27, 8, 9\)"),
        ({KERNEL: torch.zeros(8)}, "has shape"),
        ({"output.0.bn.weight": torch.zeros(5)}, r"output.0.bn.weight has shape \(5,\)"),
        ({"linear_ghost.linear.weight": torch.zeros(2, 4)}, "linear_ghost.* no ghost layer"),
        ({KERNEL.replace("kernel", "bias"): torch.zeros(1, 8)}, "no biases of convolutions"),
        ({"backbone.encoder.input_layer.kernel": None}, "not the state dict of SPINE's"),
        (
            {"backbone.encoder.input_layer.kernel": torch.zeros(343, 2, 4)},
            "have an input kernel of 3",
        ),
        ({KERNEL.replace("1.0", "9999.0"): torch.zeros(1)}, "10000 levels"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(change, words):
    state = to_spine(weights.initial(SMALL, 3), SMALL) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(InvalidWeights, match=words) as refusal:
        from_spine(state)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_read_as_another_layout_is_recognised(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "snapshot.ckpt")
    with pytest.raises(InvalidWeights, match="--from spine"):
        weight_files.read(tmp_path / "snapshot.ckpt")


CONFIGURATIONS = {
    "semantic": {"num_classes": 5, "num_input": 1, "depth": 5, "reps": 2, "filters": 32},
    "deghosting": {"num_classes": 2, "num_input": 2, "depth": 4, "reps": 1, "filters": 16},
    "2D": {"num_classes": 5, "num_input": 1, "depth": 3, "reps": 2, "filters": 8, "data_dim": 2},
}


def build_in_spine(configuration):
    """Return a UResNetSegmentation of SPINE with random weights and running statistics."""
    from spine.model.uresnet import UResNetSegmentation

    torch.manual_seed(0)
    network = UResNetSegmentation(
        configuration
        | {
            "activation": {"name": "lrelu", "negative_slope": 0.33},
            "norm_layer": {"name": "batch_norm", "eps": 1e-4, "momentum": 0.01},
        }
    ).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if ".bn." in name and value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape))
    return network


@pytest.mark.spine
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_spine_on_minkowskiengine(tmp_path, name):
    pytest.importorskip("spine", exc_type=ImportError)
    if registry.probe("minkowski").capabilities is None:
        pytest.skip("MinkowskiEngine is not installed")
    configuration = CONFIGURATIONS[name]
    dim = configuration.get("data_dim", 3)
    backends = [
        registry.load(engine, dim=dim, device="cpu", precision="fp32")
        for engine in ("minkowski", "sscn")
    ]
    from spine.data import TensorBatch

    from harness.events import benchmark_batch, open_sample

    arrays, _ = benchmark_batch(open_sample(192), 2, 0, inputs=configuration["num_input"])
    sites, features = torch.from_numpy(arrays["sites"]), torch.from_numpy(arrays["features"])
    if dim == 2:
        sites = sites[:, :3].unique(dim=0)
        features = features[: len(sites)]
    sites = sites.int().contiguous()
    network = build_in_spine(configuration)
    table = TensorBatch(
        torch.cat([sites.float(), features], 1),
        batch_size=2,
        has_batch_col=True,
        coord_cols=list(range(1, 1 + dim)),
    )
    with torch.no_grad():
        expected = network(table)["segmentation"].tensor
    torch.save({"state_dict": network.state_dict()}, tmp_path / "snapshot.ckpt")
    values = weight_files.read(tmp_path / "snapshot.ckpt", "spine")
    config, found_dim = weight_files.network_size(values)
    assert found_dim == dim
    for backend in backends:
        ours = UResNet(backend, config).eval()
        weights.load(ours, values)
        with torch.no_grad():
            logits = ours(ours.tensor(sites, features, 192, 2))
        assert (logits - expected).norm() / expected.norm() < 1e-5, backend.name
    weight_files.write(tmp_path / "back.pt", values, "spine")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    state = network.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    network.load_state_dict(back)
