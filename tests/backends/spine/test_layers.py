"""The layers behind SPINE, without SPINE: values of MinkowskiEngine, levels, and refusals."""

import copy

import pytest
import torch

from backends import registry
from backends.contract import Kind, Unsupported
from backends.spine import coordinates as maps
from backends.spine import engine as engines
from backends.spine import layers, pooling
from backends.spine.coordinates import CoordinateManager
from backends.spine.deferred import DeferredTensor
from backends.spine.tensor import SparseTensor


@pytest.fixture(autouse=True)
def small_volumes(monkeypatch):
    """Let the dense engine have small volumes, and forget the engines of other tests."""
    monkeypatch.setattr(maps, "LEVELS", 3)


@pytest.fixture
def table(dim):
    """Coordinates with negative ones, and features in double precision."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, *[9] * dim, generator=generator) < 0.25
    found = volume.nonzero().int()
    found = found[torch.randperm(len(found), generator=generator)]
    found[:, 1:] -= 4
    features = torch.randn(len(found), 3, generator=generator, dtype=torch.float64)
    return found.contiguous(), features.requires_grad_()


def tensor(coordinates, features):
    stride = (1,) * (coordinates.shape[1] - 1)
    return SparseTensor(CoordinateManager().find(coordinates, stride), features)


def by_coordinate(coordinates, features):
    place = maps.lookup(coordinates, coordinates[maps._keys(coordinates).argsort()])
    return features[place]


MINKOWSKI = {
    "submanifold": ("Convolution", (3, 4), {"kernel_size": 3, "bias": True}),
    "wide": ("Convolution", (3, 4), {"kernel_size": 5}),
    "one site": ("Convolution", (3, 4), {"kernel_size": 1, "bias": True}),
    "strided": ("Convolution", (3, 4), {"kernel_size": 2, "stride": 2}),
    "strided, one site": ("Convolution", (3, 4), {"kernel_size": 1, "stride": 2}),
    "instance norm": ("InstanceNorm", (3,), {}),
    "max": ("MaxPooling", (2, 2), {}),
    "mean": ("AvgPooling", (2, 2), {}),
    "sum": ("SumPooling", (2, 2), {}),
    "global mean": ("GlobalAvgPooling", (), {}),
    "global sum": ("GlobalSumPooling", (), {}),
    "global maximum": ("GlobalMaxPooling", (), {}),
}


@pytest.mark.parametrize("case", MINKOWSKI)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_layer_has_the_parameters_and_values_of_minkowskiengine(case, table, dim):
    me = pytest.importorskip("backends.minkowski", exc_type=ImportError).me
    name, arguments, named = MINKOWSKI[case]
    if "onvolution" in name or (name.endswith("Pooling") and not name.startswith("Global")):
        named = named | {"dimension": dim}
    torch.manual_seed(5)
    theirs = getattr(me, f"Minkowski{name}")(*arguments, **named)
    torch.manual_seed(5)
    ours = getattr(layers, name, None) or getattr(pooling, name)
    ours = ours(*arguments, **named)
    expected = theirs.state_dict()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), "drawn from the generator in another order"
    coordinates, features = table
    reference = features.detach().clone().requires_grad_()
    out = theirs.double()(me.SparseTensor(reference, coordinates))
    found = ours.double()(tensor(coordinates, features))
    torch.testing.assert_close(
        by_coordinate(found.C, found.F + 0), by_coordinate(out.C, out.F), check_stride=False
    )
    (found.F * found.F).sum().backward()
    (out.F * out.F).sum().backward()
    torch.testing.assert_close(features.grad, reference.grad)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=key)


def test_coarse_coordinates_are_those_of_the_engines_rows(engine, dim, monkeypatch):
    """With the unit matrix at every tap, a row is the sum of the children of its coordinates."""
    engine.load(dim)  # skips where the engine has no such dimension
    monkeypatch.setenv(engines.ENGINE, engine.name)
    generator = torch.Generator().manual_seed(1)
    sites = (torch.rand(2, *[16] * dim, generator=generator) < 0.1).nonzero().int()
    sites = sites[torch.randperm(len(sites), generator=generator)].contiguous()
    sites[:, 1:] -= 8
    sites = sites.to(engine.device)
    x = tensor(sites, sites.float())
    total = sites.long()
    for level in range(3):
        layer = layers.Convolution(dim + 1, dim + 1, kernel_size=2, stride=2, dimension=dim)
        with torch.no_grad():
            layer.kernel.copy_(torch.eye(dim + 1).expand_as(layer.kernel))
        x = layer.to(engine.device)(x)
        step = torch.tensor((1, *[2 ** (level + 1)] * dim), device=sites.device)
        parents = sites.div(step, rounding_mode="floor") * step
        place = maps.lookup(x.C, parents)
        assert bool((place >= 0).all())
        assert len(x) == len(parents.unique(dim=0)) == len(x.C)
        assert x.tensor_stride == [2 ** (level + 1)] * dim
        expected = torch.zeros(len(x), dim + 1, dtype=torch.int64, device=sites.device)
        expected.index_add_(0, place, total)
        assert torch.equal(torch.as_tensor(x.F + 0).round().long(), expected)


def test_features_can_be_replaced_at_any_level(engine, dim, monkeypatch):
    """Down, an operation of torch on coarse rows, and up again."""
    engine.load(dim)
    monkeypatch.setenv(engines.ENGINE, engine.name)
    generator = torch.Generator().manual_seed(2)
    sites = (torch.rand(2, *[16] * dim, generator=generator) < 0.1).nonzero().int()
    sites = sites[torch.randperm(len(sites), generator=generator)].contiguous().to(engine.device)
    down = layers.Convolution(2, 3, kernel_size=2, stride=2, dimension=dim).to(engine.device)
    up = layers.ConvolutionTranspose(3, 2, kernel_size=2, stride=2, dimension=dim)
    up = up.to(engine.device)
    rows = torch.randn(len(sites), 2, generator=generator).to(engine.device)
    with torch.no_grad():
        plain = up(down(tensor(sites, rows)))
        coarse = down(tensor(sites, rows))
        doubled = up(coarse.with_rows(2 * coarse.features))
    assert plain.at.coordinates is sites
    torch.testing.assert_close(doubled.features, 2 * plain.features)


@pytest.mark.parametrize("dim", [3])
def test_pruned_sites_count_as_zero_in_a_transposed_convolution(table):
    sites, features = table
    down = layers.Convolution(3, 3, kernel_size=2, stride=2, dimension=3).double()
    up = layers.ConvolutionTranspose(3, 2, kernel_size=2, stride=2, dimension=3).double()
    coarse = down(tensor(sites, features))
    mask = torch.arange(len(coarse)) % 2 == 0
    pruned = pooling.Pruning()(coarse, mask)
    assert torch.equal(pruned.C, coarse.C[mask])
    expected = up(coarse.with_rows(coarse.features * mask.unsqueeze(1)))
    torch.testing.assert_close(up(pruned).features, expected.features)


@pytest.mark.parametrize("dim", [2])
def test_tensors_of_other_sites_are_added_on_the_union(table):
    sites, features = table
    x = tensor(sites, features)
    part = pooling.Pruning()(x, torch.arange(len(x)) % 3 == 0)
    total = part + x
    assert len(total) == len(x)
    found = total.features[maps.lookup(total.C, sites)]
    doubled = torch.where((torch.arange(len(x)) % 3 == 0).unsqueeze(1), 2.0, 1.0)
    torch.testing.assert_close(found, features * doubled)
    with pytest.raises(ValueError, match="different coordinate managers"):
        _ = part + tensor(sites[:5], features[:5])


@pytest.mark.parametrize("dim", [2])
def test_a_norm_used_twice_updates_its_statistics_once(table):
    sites, features = table
    norm, relu = layers.BatchNorm(4, eps=1e-4, momentum=0.01).double(), layers.ReLU()
    convolution = layers.Convolution(3, 4, kernel_size=3, dimension=2).double()
    x = convolution(tensor(sites, features))
    y = norm(x)
    first, again, plain = relu(y).features, relu(y).features, y.features
    expected = torch.nn.BatchNorm1d(4, eps=1e-4, momentum=0.01).double()
    values = expected(x.features)
    torch.testing.assert_close(plain, values)
    torch.testing.assert_close(first, values.relu())
    torch.testing.assert_close(again, values.relu())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(norm.bn.state_dict()[name], value)


@pytest.mark.parametrize("dim", [2])
def test_features_of_a_norm_cannot_be_read_after_its_parameters_changed(table):
    sites, features = table
    norm = layers.BatchNorm(4).double()
    x = layers.Convolution(3, 4, kernel_size=3, dimension=2).double()(tensor(sites, features))
    y = norm(x)
    with torch.no_grad():
        norm.bn.weight.mul_(2)
    with pytest.raises(RuntimeError, match="before the optimiser's step"):
        _ = y.features


@pytest.mark.parametrize("kind", [Kind.SUBMANIFOLD, Kind.STRIDED, Kind.INVERSE])
def test_kernels_of_minkowskiengine_need_no_copy_in_sscn(kind, dim):
    engine = engines.Engine(registry.load("sscn", dim=dim, device="cpu", precision="fp32"))
    size = 3 if kind is Kind.SUBMANIFOLD else 2
    kernel = torch.randn(size**dim, 3, 4)
    native = engine.native_kernel(kind, kernel)
    assert native.is_contiguous()
    assert native.data_ptr() == kernel.data_ptr()


@pytest.mark.parametrize("dim", [2])
def test_a_used_network_can_be_copied_and_changed(table):
    sites, features = table
    layer = layers.Convolution(3, 4, kernel_size=3, dimension=2).double()
    with torch.no_grad():
        before = layer(tensor(sites, features)).features
        copied = copy.deepcopy(layer)
        torch.testing.assert_close(copied(tensor(sites, features)).features, before)
        layer.kernel.mul_(2)
        torch.testing.assert_close(layer(tensor(sites, features)).features, 2 * before)
        torch.testing.assert_close(copied(tensor(sites, features)).features, before)


REFUSED = {
    "dilation 3": lambda: layers.Convolution(1, 1, kernel_size=3, dilation=3, dimension=3),
    "kernel 3, stride 2": lambda: layers.Convolution(1, 1, kernel_size=3, stride=2, dimension=3),
    "kernel 4": lambda: layers.Convolution(1, 1, kernel_size=4, dimension=3),
    "differs between axes": lambda: layers.Convolution(1, 1, kernel_size=(3, 1), dimension=2),
    "transposed convolution with kernel 3": lambda: layers.ConvolutionTranspose(
        1, 1, kernel_size=3, stride=2, dimension=3
    ),
    "expanded coordinates": lambda: layers.Convolution(
        1, 1, kernel_size=3, expand_coordinates=True, dimension=3
    ),
    "ChannelwiseConvolution": lambda: layers.ChannelwiseConvolution(1, kernel_size=3),
    "MaxPooling with kernel 3": lambda: pooling.MaxPooling(3, 2, dimension=3),
    "global pooling": lambda: pooling.GlobalPooling("median"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_operation_that_is_missing_is_named(what):
    with pytest.raises(Unsupported, match=what):
        REFUSED[what]()


def test_an_unknown_engine_is_named(monkeypatch):
    monkeypatch.setenv(engines.ENGINE, "nonsense")
    with pytest.raises(registry.UnknownBackend, match="no engine called 'nonsense'"):
        engines.chosen()


def test_an_engine_that_lacks_the_type_is_named(monkeypatch):
    monkeypatch.setenv(engines.ENGINE, "sscn")
    sites = torch.zeros(1, 4, dtype=torch.int32)
    layer = layers.Convolution(1, 1, kernel_size=3, dimension=3)
    with pytest.raises(Unsupported, match="float32 or float64"):
        layer(tensor(sites, torch.ones(1, 1, dtype=torch.float16)))


def test_a_deferred_tensor_is_counted_without_its_values():
    calls = []
    values = torch.arange(6.0).reshape(3, 2).requires_grad_()

    def compute():
        calls.append(1)
        return values

    deferred = DeferredTensor(lambda: 3, compute)
    assert isinstance(deferred, torch.Tensor)
    assert len(deferred) == 3
    assert not calls
    assert deferred.shape == (3, 2)
    assert deferred.dtype is torch.float32
    torch.testing.assert_close(torch.cat([deferred, deferred], 1)[:, 2:], values)
    deferred.square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * values.detach())
    assert deferred.detach().numpy().tolist() == values.tolist()
