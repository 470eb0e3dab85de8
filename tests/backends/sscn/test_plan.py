"""Planned passes have the bits of passes layer by layer, and give way where they cannot serve."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from backends import network as networks
from backends.profiling_hooks import ProfilingObserver
from backends.uresnet import UResNet, UResNetConfig
from tests.backends.sscn.sets import engine, needs_cpu

pytestmark = needs_cpu
PLANNED = "planned"
SMALL = UResNetConfig(filters=4, depth=3, reps=1)
CONFIGS = [
    SMALL,
    UResNetConfig(),
    UResNetConfig(filters=8, depth=7, reps=1, classes=2, in_channels=2, slope=0.33),
    UResNetConfig(filters=4, depth=1, reps=2),
]


def random_weights(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in network.parameters():
            values.copy_(torch.randn(values.shape, generator=generator) * 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def pair(config=SMALL, dim=3, precision="fp32"):
    """The planned network, and the same weights layer by layer; both in evaluation."""
    backend = engine("cpu", precision, dim)
    planned = networks.build(backend, config).eval()
    random_weights(planned)
    plain = UResNet(backend, config).eval()
    plain.load_state_dict(planned.state_dict())
    return backend, planned, plain


def batch(size=16, dim=3, share=0.1, seed=0, inputs=1, events=2):
    generator = torch.Generator().manual_seed(seed)
    sites = (torch.rand(events, *[size] * dim, generator=generator) < share).nonzero().int()
    return sites, torch.rand(len(sites), inputs, generator=generator), size, events


@torch.no_grad()
def logits(network, x=None, **settings):
    return network(network.tensor(*batch(**settings)) if x is None else x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=["small", "study", "deep", "flat"])
def test_a_planned_pass_has_the_bits_of_one_layer_by_layer(config, dim, precision):
    backend, planned, plain = pair(config, dim, precision)
    for seed, (size, share) in enumerate([(64, 0.05), (30, 0.4), (64, 0.002), (128, 0.02)]):
        chosen = {"size": size, "share": share, "seed": seed, "dim": dim}
        found = logits(planned, inputs=config.in_channels, **chosen)
        assert backend.last_pass == PLANNED
        assert torch.equal(found, logits(plain, inputs=config.in_channels, **chosen))


def step(network, factor=None, **settings):
    """Return the logits, all gradients and the running statistics of a step."""
    network.train().zero_grad(set_to_none=True)
    found = network(network.tensor(*batch(**settings)))
    (found * (found.detach() if factor is None else factor)).sum().backward()
    return found.detach(), *[
        each if each is None else each.clone()
        for each in (*(p.grad for p in network.parameters()), *network.buffers())
    ]


def same(found, expected):
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=["small", "study", "deep", "flat"])
def test_a_planned_step_has_the_bits_of_one_layer_by_layer(config, dim, precision):
    backend, planned, plain = pair(config, dim, precision)
    for seed, (size, share) in enumerate([(64, 0.05), (30, 0.4), (128, 0.02)]):
        chosen = {"size": size, "share": share, "seed": seed, "dim": dim}
        found = step(planned, inputs=config.in_channels, **chosen)
        assert backend.last_pass == PLANNED
        assert same(found, step(plain, inputs=config.in_channels, **chosen))


def test_steps_of_an_optimiser_and_passes_in_evaluation_alternate():
    backend, planned, plain = pair()
    optimisers = [torch.optim.Adam(n.parameters(), lr=0.01, fused=True) for n in (planned, plain)]
    for seed in range(3):
        found = []
        for network, optimiser in zip((planned, plain), optimisers, strict=True):
            gradients = step(network, seed=seed)
            optimiser.step()
            network.eval()
            found.append((*gradients, logits(network, seed=seed + 10)))
            if network is planned:
                assert backend.last_pass == PLANNED
        assert same(*found)


def test_a_warm_step_keeps_the_maps():
    backend, planned, plain = pair()
    sites, features, *rest = batch()
    x = planned.train().tensor(sites, features, *rest)
    planned(x).sum().backward()
    maps = x.coordinates.planned[1]
    plain.train()(plain.tensor(sites, features, *rest)).sum().backward()
    others = features.flip(0)
    (planned(backend.with_features(x, others)) ** 2).sum().backward()
    assert x.coordinates.planned[1] is maps
    (plain(plain.tensor(sites, others, *rest)) ** 2).sum().backward()
    for a, b in zip(planned.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_frozen_parameters_get_no_gradient():
    backend, planned, plain = pair()
    step(planned)
    for network in (planned, plain):
        network.load_state_dict(pair()[1].state_dict())
        network.stem.requires_grad_(False)
        network.unet.decoder.requires_grad_(False)
        network.linear.native.bias.requires_grad_(False)
    found = step(planned)
    assert backend.last_pass == PLANNED
    assert planned.stem.native.weight.grad is None
    assert same(found, step(plain))


def test_a_second_backward_pass_repeats_the_first_where_the_graph_is_retained():
    _, planned, _ = pair()
    found = planned.train()(planned.tensor(*batch()))
    loss = (found * found.detach()).sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in planned.parameters()]
    planned.zero_grad()
    loss.backward()
    assert same(first, [p.grad for p in planned.parameters()])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_two_passes_are_differentiated_in_any_order():
    _, planned, plain = pair()
    for network in (planned.train(), plain.train()):
        outputs = [network(network.tensor(*batch(seed=seed))) for seed in (0, 1)]
        (outputs[0].square().sum() - outputs[1].square().sum()).backward()
    for a, b in zip(planned.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_parameters_that_change_before_the_backward_pass_are_refused():
    _, planned, _ = pair()
    loss = planned.train()(planned.tensor(*batch())).sum()
    with torch.no_grad():
        planned.stem.native.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_arrays_of_a_pass_are_freed_after_the_backward_pass():
    _, planned, _ = pair()
    found = planned.train()(planned.tensor(*batch()))
    saved = found.grad_fn.saved_tensors[0].planned_pass
    before = sys.getrefcount(saved)
    found.sum().backward()
    assert sys.getrefcount(saved) == before - 1


@pytest.mark.parametrize("what", ["shared layers", "a norm in evaluation", "features"])
def test_steps_that_cannot_be_planned_run_layer_by_layer(what):
    backend, planned, plain = pair()
    found = []
    for network in (planned, plain):
        network.train()
        sites, features, *rest = batch()
        if what == "shared layers":
            network.unet.encoder[0].conv2 = network.unet.encoder[0].conv1
        elif what == "a norm in evaluation":
            network.norm.eval()
        else:
            features.requires_grad_()
        network(network.tensor(sites, features, *rest)).sum().backward()
        found.append([p.grad for p in network.parameters()] + [features.grad])
        if network is planned:
            assert backend.last_pass.startswith("layer by layer: ")
    assert same(*found)


def test_one_site_has_no_batch_statistics():
    _, planned, _ = pair()
    before = [each.clone() for each in planned.buffers()]
    step(planned)
    planned.load_state_dict(pair()[1].state_dict())
    sites = torch.tensor([[0, 3, 4, 5]], dtype=torch.int32)
    with pytest.raises(ValueError, match="at least 2 sites"):
        planned(planned.tensor(sites, torch.ones(1, 1), 16, 1))
    assert same(before, list(planned.buffers()))


def test_one_site_is_enough():
    _, planned, plain = pair()
    sites = torch.tensor([[0, 3, 4, 5]], dtype=torch.int32)
    given = sites, torch.ones(1, 1), 16, 1
    with torch.no_grad():
        assert torch.equal(planned(planned.tensor(*given)), plain(plain.tensor(*given)))


def test_a_warm_pass_keeps_the_maps_and_takes_new_features():
    backend, planned, plain = pair()
    sites, features, *rest = batch()
    x = planned.tensor(sites, features, *rest)
    with torch.no_grad():
        first = planned(x)
        _, maps = x.coordinates.planned
        others = features.flip(0)
        again = planned(backend.with_features(x, others))
        assert x.coordinates.planned[1] is maps
        assert torch.equal(again, plain(plain.tensor(sites, others, *rest)))
        assert torch.equal(first, planned(x))


def test_a_network_of_another_plan_builds_its_own_maps_on_the_same_sites():
    backend, planned, _ = pair()
    other = networks.build(backend, UResNetConfig(filters=4, depth=4, reps=1)).eval()
    random_weights(other)
    x = planned.tensor(*batch())
    expected = logits(other)
    assert torch.equal(logits(planned, x), logits(planned))
    assert torch.equal(logits(other, x), expected)


CHANGES = {
    "running statistics": lambda n: n.norm.native.norm.running_var.mul_(2),
    "the bias of a norm": lambda n: n.unet.encoder[0].norm1.native.norm.bias.add_(1),
    "weights in place": lambda n: n.stem.native.weight.mul_(2),
    "the data of weights": lambda n: setattr(
        n.stem.native.weight, "data", n.stem.native.weight * 2
    ),
    "a parameter": lambda n: setattr(
        n.stem.native, "weight", nn.Parameter(n.stem.native.weight * 2)
    ),
    "the bias of the output": lambda n: n.linear.native.bias.add_(1),
    "all weights": lambda n: random_weights(n, seed=1),
    "a module": lambda n: setattr(n.stem, "native", copy.deepcopy(n.unet.encoder[0].conv1.native)),
    "shared layers": lambda n: setattr(n.unet.encoder[0], "conv2", n.unet.encoder[0].conv1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_counts_in_the_next_pass(what):
    config = UResNetConfig(filters=4, depth=3, reps=1, in_channels=4)
    backend, planned, plain = pair(config)
    before = logits(planned, inputs=4)
    with torch.no_grad():
        CHANGES[what](planned)
        CHANGES[what](plain)
    found = logits(planned, inputs=4)
    assert backend.last_pass == PLANNED
    assert not torch.equal(found, before)
    assert torch.equal(found, logits(plain, inputs=4))


def test_hooks_run_and_the_reason_is_recorded():
    backend, planned, _ = pair()
    logits(planned)
    seen = []
    handle = planned.unet.encoder[0].register_forward_hook(lambda *_: seen.append(1))
    found = logits(planned)
    assert seen
    assert backend.last_pass == "layer by layer: unet.encoder.0 has a hook"
    assert backend.precision_readback()["sscn.pass"] == backend.last_pass
    handle.remove()
    assert torch.equal(found, logits(planned))
    assert backend.last_pass == PLANNED


def test_hooks_of_all_modules_run():
    backend, planned, _ = pair()
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        logits(planned)
    finally:
        handle.remove()
    assert len(seen) > 10
    assert backend.last_pass == "layer by layer: hooks of all modules"


def test_a_forward_of_a_module_runs():
    backend, planned, _ = pair()
    before = logits(planned)
    module = planned.unet.encoder[0].conv1
    module.forward = lambda x: type(module).forward(module, type(module).forward(module, x))
    assert not torch.equal(logits(planned), before)
    assert "forward of its own" in backend.last_pass


def test_gradients_flow_with_a_network_in_evaluation():
    backend, planned, _ = pair()
    planned(planned.tensor(*batch())).sum().backward()
    assert backend.last_pass == "layer by layer: gradients in evaluation"
    assert planned.stem.native.weight.grad.abs().sum() > 0


def test_training_and_a_part_in_training_run_layer_by_layer():
    backend, planned, _ = pair()
    planned.norm.train()
    logits(planned)
    assert backend.last_pass == "layer by layer: norm is in training"
    planned.train()
    logits(planned)
    assert backend.last_pass == "layer by layer: in training without gradients"
    planned.eval()
    logits(planned)
    assert backend.last_pass == PLANNED


def test_a_network_that_reads_rows_between_layers_runs_layer_by_layer(monkeypatch):
    backend, planned, _ = pair()
    before = logits(planned)
    norm = type(planned.norm)
    forward = norm.forward

    def reading(self, x):
        if self is planned.norm:
            assert backend.features(x).isfinite().all()
        return forward(self, x)

    monkeypatch.setattr(norm, "forward", reading)
    other = copy.deepcopy(planned)
    planned._forget()
    assert torch.equal(logits(planned), before)
    assert "reads rows between layers" in backend.last_pass
    assert torch.equal(logits(planned), before)
    assert torch.equal(logits(other), before)


def test_a_profiled_pass_reports_every_layer():
    class Counter(ProfilingObserver):
        def __init__(self):
            self.maps = 0

        def recorder(self):
            return None

        def deferred(self, compute):
            return compute

        def outside_layers(self, function):
            return function

        def within(self, kind):
            self.maps += kind == "map"
            return lambda function: function

    backend, planned, _ = pair()
    counter = Counter()
    with backend.observe(counter):
        logits(planned)
    assert counter.maps == 5
    assert backend.last_pass == "layer by layer: profiled"


def test_a_copy_has_a_plan_of_its_own():
    _, planned, _ = pair()
    before = logits(planned)
    other = copy.deepcopy(planned)
    with torch.no_grad():
        other.stem.native.weight.mul_(2)
    assert not torch.equal(logits(other), before)
    assert torch.equal(logits(planned), before)


def test_features_with_other_channels_are_refused_as_before():
    _, planned, _ = pair()
    with pytest.raises(ValueError, match="the weights take 1 channels, the input has 2"):
        logits(planned, inputs=2)


def test_an_empty_batch_has_no_logits():
    _, planned, _ = pair()
    sites = torch.zeros(0, 4, dtype=torch.int32)
    with torch.no_grad():
        assert planned(planned.tensor(sites, torch.zeros(0, 1), 16, 1)).shape == (0, 5)


def test_compiled_kernels_of_another_version_are_one_sentence(monkeypatch):
    import importlib

    from backends.sscn.cpu import _kernels, processor

    monkeypatch.setattr(_kernels, "fingerprint", 0)
    with pytest.raises(ImportError, match=r"compile them again with `pip install -e \.`"):
        importlib.reload(processor)
