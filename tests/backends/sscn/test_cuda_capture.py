"""Passes on a GPU wait for the device once, and warm ones not at all: a CUDA graph can hold them.

Tensors on torch's ``meta`` device have no values: whatever reads one, as ``item`` and ``nonzero``
do, raises. Launches of Triton are recorded instead of run, so that the tests need no GPU.
"""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter launches nothing", allow_module_level=True)

from triton.runtime.jit import JITFunction

from backends import network
from backends.contract import master_dtype
from backends.sscn import adapter, selection
from backends.sscn.cuda import maps
from backends.uresnet import UResNetConfig

DEPTH, SITES, SIZE = 3, 20000, 192


class OnlyOnTheDevice(TorchDispatchMode):
    """Fail on an operation with a tensor elsewhere, which would be copied and waited for."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        for value in tree_leaves((arguments, named, found)):
            if isinstance(value, torch.Tensor):
                assert value.device.type == "meta", f"{function} has a tensor on {value.device}"
        return found


@pytest.fixture
def launches(monkeypatch):
    """Record the names of launched kernels instead of running them."""
    recorded = []

    def record(kernel, *arguments, grid, warmup, **constants):
        recorded.append(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", record)
    return recorded


@pytest.fixture
def waits(monkeypatch):
    """Answer the one transfer of a cold pass, and count it."""
    found = []

    def count(keys, dim, levels, *_):
        found.append(len(keys))
        ends = torch.empty((1, levels + 1), dtype=torch.int32, device=keys.device)
        return [*(len(keys) >> level for level in range(levels)), 0], ends

    monkeypatch.setattr(maps, "_count_levels", count)
    return found


@pytest.fixture
def copies(monkeypatch):
    """Make the few numbers that a cold pass sends to the device, and count them."""
    found = []

    def send(numbers, device):
        found.append(sum(map(len, numbers)))
        return torch.empty((len(numbers), len(numbers[0])), dtype=torch.int64, device=device)

    monkeypatch.setattr(maps, "_from_host", send)
    return found


@pytest.fixture
def ours(request, monkeypatch):
    monkeypatch.setattr(selection, "_triton_unavailable_reason", lambda device: "")
    return adapter.Backend(3, "cuda", request.param, {"kernels": "cuda"})


def build(ours, training):
    config = UResNetConfig(filters=16, depth=DEPTH, reps=2)
    dtype = master_dtype(ours.precision)
    net = network.build(ours, config).to("meta", dtype).train(training)
    features = torch.empty((SITES, 1), device="meta", dtype=dtype)
    return net, torch.empty((SITES, 4), device="meta", dtype=torch.int32), features


PRECISIONS = pytest.mark.parametrize("ours", ["fp32", "tf32", "fp16", "bf16"], indirect=True)


@PRECISIONS
@pytest.mark.parametrize("training", [False, True])
def test_only_the_count_of_sites_is_read(ours, training, launches, waits, copies):
    net, sites, features = build(ours, training)
    with OnlyOnTheDevice(), torch.set_grad_enabled(training):
        logits = net(net.tensor(sites, features, SIZE, 2))
        if training:
            logits.float().square().sum().backward()
    assert logits.shape == (SITES, UResNetConfig().classes)
    assert waits == [SITES]
    assert len(copies) <= 2
    assert "convolve_tile" in launches
    assert ("input_gradient_tile" in launches) == training


@PRECISIONS
@pytest.mark.parametrize("training", [False, True])
def test_a_warm_pass_reads_nothing(ours, training, launches, waits, copies):
    net, sites, features = build(ours, training)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(x):
        with torch.set_grad_enabled(training):
            logits = net(x)
            if training:
                optimizer.zero_grad(set_to_none=True)
                logits.float().square().sum().backward()
                optimizer.step()

    kept = net.tensor(sites, features, SIZE, 2)
    step(kept)
    for recorded in (waits, copies, launches):
        recorded.clear()
    with OnlyOnTheDevice():
        step(ours.with_features(kept, features))
    assert not waits
    assert not copies
    assert "convolve_tile" in launches
    maps_of_sites = {"_encode", "_count_parents", "coarsen", "search", "list_tiles"}
    assert not maps_of_sites & set(launches), "the maps were built again"


@pytest.mark.parametrize("ours", ["fp32"], indirect=True)
def test_another_event_launches_the_same_kernels(ours, launches, waits, copies):
    net, sites, features = build(ours, training=False)
    found = []
    for rows in (SITES, 17001):
        launches.clear()
        with torch.no_grad():
            net(net.tensor(sites[:rows], features[:rows], SIZE, 2))
        found.append(list(launches))
    assert found[0] == found[1]


@pytest.mark.parametrize("ours", ["fp32"], indirect=True)
@pytest.mark.parametrize(
    "read", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.cpu(), torch.nonzero]
)
def test_a_layer_that_reads_values_is_noticed(ours, read, launches, waits, copies):
    net, sites, features = build(ours, training=False)
    before = net.apply_layers
    net.apply_layers = lambda x: (read(features), before(x))[1]
    with OnlyOnTheDevice(), torch.no_grad(), pytest.raises((RuntimeError, NotImplementedError)):
        net(net.tensor(sites, features, SIZE, 2))
