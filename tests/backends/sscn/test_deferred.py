"""Deferred execution gives the results and frees the memory of layers run one by one."""

from __future__ import annotations

import gc
import random
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.contract import Kind, NormConfig
from backends.sscn import selection
from backends.sscn.deferred_layer import DeferredLayer
from backends.sscn.layerwise import LayerwiseForward
from tests.backends.sscn.sets import SETS, engine, needs_cpu

SIZE = 8


def some_sites(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sites = (torch.rand(2, SIZE, SIZE, SIZE, generator=generator) < 0.15).nonzero().int()
    return sites[torch.randperm(len(sites), generator=generator)].contiguous()


def filled(layer, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    layer.to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return layer


def network(seed: int, name: str, precision: str, training: bool = True) -> dict[str, Tensor]:
    """Run randomly connected layers; return the outputs and, in training, every gradient."""
    choose = random.Random(seed)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    backend = engine(name, precision)
    sites = some_sites(seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(sites), 3, generator=generator).to(dtype).requires_grad_()
    tensors = [(backend.tensor(sites, features, SIZE, 2), 3)]
    layers: list[torch.nn.Module] = []

    def made(layer: torch.nn.Module) -> torch.nn.Module:
        layers.append(filled(layer, len(layers), dtype).train(choose.random() < 0.8 and training))
        if choose.random() < 0.1:
            layers[-1].requires_grad_(False)
        return layers[-1]

    def convolution(x, kind, inputs, outputs, level=0):
        if choose.random() < 0.7:
            x = made(backend.norm(NormConfig(inputs)))(x)
        kernel = 2 if kind in (Kind.STRIDED, Kind.INVERSE) else 3
        return made(backend.convolution(kind, inputs, outputs, kernel, level))(x)

    pulled = []
    for _ in range(choose.randint(3, 9)):
        x, channels = choose.choice(tensors)
        what = choose.choice(
            ["convolution", "linear", "same", "shortcut", "add", "cat", "down", "ask"]
        )
        width = choose.choice([3, 5, 16])
        if what == "convolution":
            tensors.append((convolution(x, Kind.SUBMANIFOLD, channels, width), width))
        elif what == "linear":
            layer = made(backend.linear(channels, width, choose.random() < 0.5))
            tensors.append((layer(x), width))
        elif what == "same":
            y = convolution(x, Kind.SUBMANIFOLD, channels, channels)
            tensors.append((backend.add(y, x), channels))
        elif what == "shortcut":
            y = convolution(x, Kind.SUBMANIFOLD, channels, width)
            if choose.random() < 0.3:
                x = made(backend.norm(NormConfig(channels)))(x)
            shortcut = made(backend.linear(channels, width, False))
            tensors.append((backend.add(y, shortcut(x)), width))
        elif what == "add":
            others = [each for each, found in tensors if found == channels]
            tensors.append((backend.add(x, choose.choice(others)), channels))
        elif what == "cat":
            other, more = choose.choice(tensors)
            tensors.append((backend.cat(x, other), channels + more))
        elif what == "down":
            y = convolution(x, Kind.STRIDED, channels, width)
            y = convolution(y, Kind.INVERSE, width, channels, 1)
            tensors.append((y, channels))
        else:
            pulled.append(backend.features(x))
    pulled += [backend.features(x) for x, _ in tensors[:-3:-1]]
    if not training:
        return {f"out {place}": out for place, out in enumerate(pulled)}
    loss = sum(
        (out * torch.randn(out.shape, generator=generator).to(dtype)).sum() for out in pulled
    )
    loss.backward()
    found = {f"out {place}": out.detach() for place, out in enumerate(pulled)}
    found["features"] = features.grad
    for place, layer in enumerate(layers):
        for key, parameter in layer.named_parameters():
            found[f"{place} {key}"] = parameter.grad
        for key, buffer in layer.named_buffers():
            found[f"{place} {key}"] = buffer
    return found


@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_randomly_connected_layers_and_their_gradients_match_float64(seed):
    expected = network(seed, "reference", "fp64")
    for name in SETS:
        found = network(seed, name, "fp32")
        for key, exact in expected.items():
            value = found[key]
            if exact is None or value is None:
                assert exact is None, f"{name}: {key} has no gradient"
                assert value is None, f"{name}: {key} has a gradient"
                continue
            exact = exact.double()
            error = (value.double() - exact).norm() / exact.norm().clamp(min=1)
            assert error < 1e-3, f"{name}: {key}: {error}"


@needs_cpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_in_evaluation_the_bits_are_those_of_layers_run_one_by_one(precision, seed):
    kernels = selection.load(engine("cpu", precision).kernel_set)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        together = network(seed, "cpu", precision, training=False)
        patched.setattr(kernels, "forward_runner", lambda: LayerwiseForward(kernels))
        alone = network(seed, "cpu", precision, training=False)
    for key, value in alone.items():
        assert torch.equal(together[key], value), key


@needs_cpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fused_input_survives_a_layer_with_a_norm_between_producer_and_consumer(precision):
    # a -> norm -> c -> norm -> d, and between a and c a layer b with a norm of its own.
    backend = engine("cpu", precision)
    sites = some_sites()
    a, b, c, d = (
        filled(backend.convolution(Kind.SUBMANIFOLD, 16, 16, 3, 0), seed) for seed in range(4)
    )
    norms = [filled(backend.norm(NormConfig(16)), 4 + seed).eval() for seed in range(3)]
    features = torch.randn(len(sites), 16, generator=torch.Generator().manual_seed(0))

    def run(read) -> Tensor:
        x = backend.tensor(sites, features, SIZE, 2)
        at_a = read(a(x))
        at_b = read(backend.add(b(norms[0](x)), x))
        at_c = read(c(norms[1](at_a)))
        return backend.features(backend.add(d(norms[2](at_c)), at_b))

    def read_now(x):
        backend.rows(x)  # runs the layers
        return x

    with torch.no_grad():
        assert torch.equal(run(lambda x: x), run(read_now))


@pytest.mark.parametrize("name", SETS)
def test_a_tensor_that_is_held_is_not_overwritten_by_later_layers(name):
    backend = engine(name)
    sites = some_sites()
    convolutions = [
        filled(backend.convolution(Kind.SUBMANIFOLD, 4, 4, 3, 0), seed) for seed in range(5)
    ]
    with torch.no_grad():
        x = backend.tensor(sites, torch.ones(len(sites), 4), SIZE, 2)
        expected = []
        for convolution in convolutions:
            x = convolution(x)
            expected.append(backend.features(x).clone())
        x = backend.tensor(sites, torch.ones(len(sites), 4), SIZE, 2)
        held = []
        for place, convolution in enumerate(convolutions):
            x = convolution(x)
            if place in (1, 4):
                held.append(x)
        for x, place in zip(reversed(held), (4, 1), strict=True):
            assert torch.equal(backend.features(x), expected[place])


@pytest.mark.parametrize("name", SETS)
def test_features_outlive_their_site_tensor(name):
    backend = engine(name)
    sites = some_sites()
    first, *others = [
        filled(backend.convolution(Kind.SUBMANIFOLD, 4, 4, 3, 0), seed) for seed in range(4)
    ]
    with torch.no_grad():
        x = first(backend.tensor(sites, torch.ones(len(sites), 4), SIZE, 2))
        y = x
        for convolution in others:
            y = convolution(y)
        rows = y.rows  # recorded, before any layer has run
        held = backend.rows(x)
        before = held.clone()
        del x
        backend.features(y)
    assert rows
    assert torch.equal(held, before)


@pytest.mark.parametrize("name", SETS)
def test_no_tensor_is_saved_after_the_backward_pass(name):
    backend = engine(name)
    sites = some_sites()
    channels = 7
    layers = [filled(backend.convolution(Kind.SUBMANIFOLD, 7, 7, 3, 0), s) for s in range(4)]
    norms = [backend.norm(NormConfig(7)) for _ in layers]
    saved: list[weakref.ref[Saved]] = []

    class Saved:
        def __init__(self, values: Tensor) -> None:
            self.values = values
            saved.append(weakref.ref(self))

    x = backend.tensor(sites, torch.ones(len(sites), channels), SIZE, 2)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda each: each.values):
        for layer, norm in zip(layers, norms, strict=True):
            x = layer(norm(x))
        loss = backend.features(x).square().sum()
    del x
    assert any(each() is not None for each in saved)
    loss.backward()
    gc.collect()
    assert not any(each() is not None for each in saved), "saved tensors outlive the gradients"
    assert not any(type(each) is DeferredLayer for each in gc.get_objects()), "layers outlive them"


@pytest.mark.parametrize("name", SETS)
def test_features_read_between_layers_are_part_of_the_autograd_graph(name):
    backend = engine(name)
    sites = some_sites()
    below = filled(backend.convolution(Kind.SUBMANIFOLD, 1, 4, 3, 0), 0)
    above = filled(backend.convolution(Kind.SUBMANIFOLD, 4, 2, 3, 0), 1)
    x = below(backend.tensor(sites, torch.ones(len(sites), 1), SIZE, 2))
    y = above(x)
    middle = backend.rows(x)
    loss = backend.features(y).square().sum()
    (to_middle,) = torch.autograd.grad(loss, middle, retain_graph=True)
    found = torch.autograd.grad(middle, below.weight, to_middle, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(loss, below.weight))


@pytest.mark.parametrize("name", SETS)
def test_layers_above_frozen_layers_get_gradients(name):
    backend = engine(name)
    sites = some_sites()
    below = filled(backend.convolution(Kind.SUBMANIFOLD, 1, 4, 3, 0), 0)
    above = filled(backend.convolution(Kind.SUBMANIFOLD, 4, 4, 3, 0), 1)
    gradients = []
    for frozen in (False, True):
        x = backend.tensor(sites, torch.ones(len(sites), 1), SIZE, 2)
        with torch.set_grad_enabled(not frozen):
            x = below(x)
            _ = x.rows
        backend.features(above(x)).square().sum().backward()
        gradients.append(above.weight.grad.clone())
        assert (below.weight.grad is None) == frozen
        below.weight.grad = above.weight.grad = None
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", SETS)
def test_a_norm_that_two_layers_apply_updates_its_statistics_once(name):
    backend = engine(name)
    sites = some_sites()
    features = torch.rand(len(sites), 2, generator=torch.Generator().manual_seed(0))
    norm = backend.norm(NormConfig(2))
    once = torch.nn.BatchNorm1d(2, eps=norm.norm.eps, momentum=norm.norm.momentum)
    once(features)
    x = norm(backend.tensor(sites, features, SIZE, 2))
    two = [filled(backend.convolution(Kind.SUBMANIFOLD, 2, 3, 3, 0), s) for s in (0, 1)]
    backend.features(backend.add(two[0](x), two[1](x))).sum().backward()
    torch.testing.assert_close(norm.norm.running_mean, once.running_mean)
    torch.testing.assert_close(norm.norm.running_var, once.running_var)


@needs_cpu
def test_after_a_failed_run_the_layers_before_it_run_again():
    backend = engine("cpu")
    sites = some_sites()
    good = filled(backend.convolution(Kind.SUBMANIFOLD, 1, 4, 3, 0), 0)
    bad = filled(backend.linear(4, 2, False), 1)
    x = backend.tensor(sites, torch.ones(len(sites), 1), SIZE, 2)
    expected = backend.features(bad(good(x))).detach()
    norm = backend.norm(NormConfig(4)).double()
    y = good(x)
    with pytest.raises(ValueError, match="float32"):
        backend.features(bad(norm(y)))
    torch.testing.assert_close(backend.features(bad(y)), expected)


@needs_cpu
def test_other_threads_run_during_layers():
    backend = engine("cpu")
    generator = torch.Generator().manual_seed(0)
    sites = (torch.rand(1, 48, 48, 48, generator=generator) < 0.5).nonzero().int()
    layers = [filled(backend.convolution(Kind.SUBMANIFOLD, 32, 32, 3, 0), s) for s in range(6)]
    turns, over = [0], threading.Event()

    def count():
        while not over.is_set():
            turns[0] += 1

    thread = threading.Thread(target=count)
    with torch.no_grad():
        x = backend.tensor(sites, torch.ones(len(sites), 32), 48, 1)
        for layer in layers:
            x = layer(x)
        pending = x.rows  # recorded, and the maps are built
        thread.start()
        before = turns[0]
        backend.features(x)
        counted = turns[0] - before
    over.set()
    thread.join()
    assert pending
    assert counted > 1000
