"""The engine behind the contract: results do not depend on fusion or on deferred execution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backends import registry, weights
from backends.contract import Kind, NormConfig, Unsupported, site_keys
from backends.loss import event_cross_entropy
from backends.uresnet import UResNet, UResNetConfig
from tests.backends.sscn.sets import SETS

SIZE = 12
CONFIG = UResNetConfig(filters=8, depth=3, reps=1)


def batch(dim: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, *[SIZE] * dim, generator=generator) < 0.15
    sites = volume.nonzero().int()
    sites = sites[torch.randperm(len(sites), generator=generator)].contiguous()
    return sites, torch.rand(len(sites), 1, generator=generator)


def engine(dim: int = 3, precision: str = "fp32", **options: str):
    return registry.load("sscn", dim=dim, device="cpu", precision=precision, options=options)


def filled(layer):
    generator = torch.Generator().manual_seed(len(list(layer.parameters())))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_and_its_gradients_are_those_of_dense_convolutions(dim, training):
    sites, features = batch(dim)
    labels = torch.arange(len(sites)) % CONFIG.classes
    outcomes = []
    for name, precision in (("dense", "fp64"), ("sscn", "fp32")):
        backend = registry.load(name, dim=dim, device="cpu", precision=precision)
        dtype = torch.float64 if precision == "fp64" else torch.float32
        network = UResNet(backend, CONFIG).to(dtype).train(training)
        weights.load(network, weights.initial(CONFIG, dim))
        logits = network(network.tensor(sites, features.to(dtype), SIZE, 2))
        event_cross_entropy(logits, labels, sites[:, 0], 2).backward()
        outcomes.append({"logits": logits.detach(), **weights.gradients(network)})
    exact, found = outcomes
    for name, expected in exact.items():
        error = (found[name].double() - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: {error}"


def test_every_kernel_set_offered_runs_the_network():
    sites, features = batch()
    logits = []
    for name in ("auto", *SETS):
        network = UResNet(engine(kernels=name), CONFIG).eval()
        weights.load(network, weights.initial(CONFIG, 3))
        with torch.no_grad():
            logits.append(network(network.tensor(sites, features, SIZE, 2)))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)


def test_a_convolution_whose_result_is_used_several_times():
    backend = engine()
    sites, features = batch()
    x = backend.tensor(sites, features, SIZE, 2)
    convolution = filled(backend.convolution(Kind.SUBMANIFOLD, 1, 4, 3, 0))
    norm = backend.norm(NormConfig(4)).eval()
    once = convolution(x)
    alone = backend.features(convolution(x))
    torch.testing.assert_close(backend.features(backend.add(once, once)), 2 * alone)
    torch.testing.assert_close(
        backend.features(norm(once)), (alone / (1 + norm.norm.eps) ** 0.5).relu()
    )
    torch.testing.assert_close(backend.features(once), alone)


def test_a_sum_of_normalised_tensors_sums_what_the_norms_give():
    backend = engine()
    sites, features = batch()
    x = backend.tensor(sites, features, SIZE, 2)
    norm = backend.norm(NormConfig(1)).eval()
    expected = 2 * (features / (1 + norm.norm.eps) ** 0.5).relu()
    torch.testing.assert_close(backend.features(backend.add(norm(x), norm(x))), expected)


def test_channels_are_concatenated_in_order_however_many_sources():
    backend = engine()
    sites, features = batch()
    x = backend.tensor(sites, features, SIZE, 2)
    y = backend.with_features(x, 2 * features)
    joined = backend.cat(backend.cat(x, y), backend.cat(y, x))
    expected = torch.cat([features, 2 * features, 2 * features, features], 1)
    assert torch.equal(backend.features(joined), expected)
    linear = filled(backend.linear(4, 3, True))
    torch.testing.assert_close(
        backend.features(linear(joined)), expected @ linear.weight[0] + linear.bias
    )


def test_rows_below_the_finest_level_ascend_by_site():
    backend = engine()
    sites, features = batch()
    down = filled(backend.convolution(Kind.STRIDED, 1, 1, 2, 0))
    found = backend.features(down(backend.tensor(sites, features, SIZE, 2)))
    coarse = torch.cat([sites[:, :1], sites[:, 1:] // 2], 1)
    keys, parent = site_keys(coarse, SIZE // 2).unique(return_inverse=True)
    tap = (sites[:, 1:] % 2 * torch.tensor([4, 2, 1])).sum(1)
    expected = torch.zeros(len(keys), 1).index_add(0, parent, features * down.weight[tap, 0])
    torch.testing.assert_close(found, expected)


def test_evaluation_uses_weights_and_statistics_that_have_changed():
    backend = engine()
    sites, features = batch()
    norm = backend.norm(NormConfig(1)).eval()
    with torch.no_grad():
        x = backend.tensor(sites, features, SIZE, 2)
        before = backend.features(norm(x))
        norm.norm.weight.mul_(3)
        torch.testing.assert_close(backend.features(norm(x)), 3 * before)
        norm.norm.running_var.fill_(8.9999)
        torch.testing.assert_close(backend.features(norm(x)), features)


def test_running_statistics_are_those_of_torch():
    backend = engine()
    sites, features = batch()
    norm = backend.norm(NormConfig(1))
    expected = torch.nn.BatchNorm1d(1, eps=norm.norm.eps, momentum=norm.norm.momentum)
    found = backend.features(norm(backend.tensor(sites, features, SIZE, 2)))
    torch.testing.assert_close(found, expected(features).relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.norm.running_var, expected.running_var)


def test_one_site_cannot_be_normalised_in_training():
    backend = engine()
    one = backend.tensor(torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, 1), SIZE, 1)
    with pytest.raises(ValueError, match="at least 2 sites"):
        backend.norm(NormConfig(1))(one)


def test_unsupported_layers_and_options_are_refused():
    backend = engine()
    with pytest.raises(Unsupported, match="kernel 2"):
        backend.convolution(Kind.STRIDED, 1, 1, 3, 0)
    with pytest.raises(Unsupported, match="odd kernel"):
        backend.convolution(Kind.SUBMANIFOLD, 1, 1, 2, 0)
    with pytest.raises(ValueError, match="fastest"):
        engine(kernels="fastest")
    with pytest.raises(ValueError, match="float32"):
        engine(precision="fp64", kernels="cpu")
    small = backend.tensor(torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, 1), 1, 1)
    with pytest.raises(ValueError, match="no coarser level"):
        backend.convolution(Kind.STRIDED, 1, 1, 2, 0)(small)
