"""Planned passes of the ``cuda`` kernels, from their C++ code to the values, without a GPU.

Their launches reach a driver that runs them in Triton's interpreter. The interpreter must be chosen
before Triton is imported: the first test runs this file with ``TRITON_INTERPRET=1`` in a process of
its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from backends import network, weights
from backends.contract import master_dtype
from backends.sscn import adapter
from backends.sscn.planned_network import PLANNED
from backends.uresnet import UResNet, UResNetConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture
def driver():
    from benchmarks.gpu.plan_driver import PlanDriver

    found = PlanDriver(interpreted=True)
    with found.installed():
        yield found


CONFIG = UResNetConfig(filters=4, depth=2, reps=1)


def build(config=CONFIG, dim=2, device="cpu", precision="fp32"):
    engine = adapter.Backend(dim, device, precision, {"kernels": "cuda"})
    net = network.build(engine, config).to(device, master_dtype(precision))
    network.reset(net, weights.initial(config, dim))
    return engine, net


def some_sites(seed, count, size, dim=2, batch=2):
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, size, (count, dim), generator=generator)
    events = torch.randint(0, batch, (count, 1), generator=generator)
    sites = torch.cat([events, places], 1).unique(dim=0).int()
    sites = sites[torch.randperm(len(sites), generator=generator)]
    return sites, torch.rand((len(sites), 1), generator=generator)


def run(net, x, *, planned):
    """Return everything that a pass computes."""
    before = {name: each.clone() for name, each in net.state_dict().items()}
    with torch.set_grad_enabled(net.training):
        logits = net(x) if planned else UResNet.forward(net, x)
        if net.training:
            net.zero_grad(set_to_none=True)
            logits.float().square().sum().backward()
    found = {"logits": logits.detach().clone()}
    found |= {name: each.grad.clone() for name, each in net.named_parameters() if net.training}
    found |= {f"{name} after": each.clone() for name, each in net.named_buffers()}
    net.load_state_dict(before)
    return found


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different


@interpreted
@pytest.mark.parametrize(
    ("training", "dim"), [(False, 3), (True, 2)], ids=["evaluation", "training"]
)
def test_a_planned_pass_has_the_bits_of_one_layer_by_layer(driver, training, dim):
    engine, net = build(dim=dim)
    net.train(training)
    for seed, count in ((1, 40), (2, 15)):
        sites, features = some_sites(seed, count, 10 if dim == 2 else 5, dim)
        x = net.tensor(sites, features, 10, 2)
        found = run(net, x, planned=True)
        assert engine.last_pass == PLANNED
        launched = {launch.name for launch in driver.launches}
        assert "convolve_tile" in launched
        assert ("weight_gradient_share" in launched) == training
        assert_equal(found, run(net, net.tensor(sites, features, 10, 2), planned=False))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_planned_pass_has_the_bits_of_one_layer_by_layer_on_a_gpu(training, precision):
    engine, net = build(UResNetConfig(), 3, "cuda", precision)
    net.train(training)
    for seed, count in ((1, 3000), (2, 30000), (3, 5000), (4, 200000)):
        sites, features = some_sites(seed, count, 96, dim=3, batch=4)
        sites, features = sites.cuda(), features.to("cuda", engine.storage)
        found = run(net, net.tensor(sites, features, 96, 4), planned=True)
        assert engine.last_pass == PLANNED
        assert_equal(found, run(net, net.tensor(sites, features, 96, 4), planned=False))


@interpreted
def test_new_features_on_the_same_sites_use_the_plan_again(driver):
    engine, net = build()
    net.eval()
    sites, features = some_sites(1, 30, 10)
    x = net.tensor(sites, features, 10, 2)
    with torch.no_grad():
        first = net(x)
        again = net(engine.with_features(x, 2 * features))
        assert engine.last_pass == PLANNED
        wanted = UResNet.forward(net, engine.with_features(x, 2 * features))
    assert torch.equal(again, wanted)
    assert not torch.equal(again, first)


@interpreted
def test_changed_statistics_change_a_planned_pass(driver):
    engine, net = build()
    net.eval()
    sites, features = some_sites(1, 30, 10)
    for _ in range(2):
        found = run(net, net.tensor(sites, features, 10, 2), planned=True)
        assert engine.last_pass == PLANNED
        assert_equal(found, run(net, net.tensor(sites, features, 10, 2), planned=False))
        with torch.no_grad():
            for name, each in net.named_buffers():
                if "running" in name:
                    each += 0.5 if name.endswith("running_var") else 0.1


@interpreted
def test_weights_of_another_type_are_converted_when_they_change(driver):
    engine, net = build(precision="fp16")
    net.eval()
    sites, features = some_sites(1, 30, 10)
    x = net.tensor(sites, features, 10, 2)
    for _ in range(2):
        found = run(net, x, planned=True)
        assert engine.last_pass == PLANNED
        assert engine.storage is torch.float16
        assert_equal(found, run(net, x, planned=False))
        with torch.no_grad():
            for each in net.parameters():
                each *= 1.5


@interpreted
def test_weights_of_another_type_are_converted_in_each_step(driver):
    engine, net = build(precision="fp16")  # the interpreter cuts bf16 where torch rounds
    net.train()
    sites, features = some_sites(1, 15, 6)
    first = run(net, net.tensor(sites, features, 6, 2), planned=True)
    with torch.no_grad():
        for each in net.parameters():
            each *= 1.5
    driver.launches.clear()
    found = run(net, net.tensor(sites, features, 6, 2), planned=True)
    assert engine.last_pass == PLANNED
    assert [launch.name for launch in driver.launches].count("convert_all_weights") == 1
    assert not torch.equal(found["logits"], first["logits"])
    assert_equal(found, run(net, net.tensor(sites, features, 6, 2), planned=False))


@interpreted
def test_sizes_that_need_other_blocks_have_a_plan_of_their_own(driver, monkeypatch):
    from backends.sscn.cuda import blocks

    monkeypatch.setattr(blocks, "TILES", ((60, 64), (0, 32)))
    blocks.convolution_blocks.cache_clear()
    engine, net = build()
    net.eval()
    for seed, count in ((1, 30), (2, 70), (3, 35)):
        sites, features = some_sites(seed, count, 10)
        found = run(net, net.tensor(sites, features, 10, 2), planned=True)
        assert engine.last_pass == PLANNED
        assert_equal(found, run(net, net.tensor(sites, features, 10, 2), planned=False))
    blocks.convolution_blocks.cache_clear()


@interpreted
def test_leaky_activations_and_two_inputs_are_planned(driver):
    config = UResNetConfig(filters=4, depth=3, reps=1, in_channels=2, classes=2, slope=0.33)
    engine, net = build(config)
    net.train()
    sites, features = some_sites(4, 24, 8)
    features = torch.cat([features, -features], 1)
    found = run(net, net.tensor(sites, features, 8, 2), planned=True)
    assert engine.last_pass == PLANNED
    assert_equal(found, run(net, net.tensor(sites, features, 8, 2), planned=False))


@interpreted
def test_frozen_weights_have_no_gradient(driver):
    engine, net = build()
    net.train()
    frozen = [each for name, each in net.named_parameters() if "encoder" in name]
    for each in frozen:
        each.requires_grad_(False)
    sites, features = some_sites(5, 30, 10)
    logits = net(net.tensor(sites, features, 10, 2))
    assert engine.last_pass == PLANNED
    logits.sum().backward()
    assert all(each.grad is None for each in frozen)
    assert all(each.grad is not None for each in net.parameters() if each.requires_grad)


@interpreted
def test_a_hook_is_called(driver):
    engine, net = build()
    net.eval()
    sites, features = some_sites(1, 40, 10)
    called = []
    net.norm.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        net(net.tensor(sites, features, 10, 2))
    assert called
    assert engine.last_pass == "layer by layer: norm has a hook"


@interpreted
def test_a_network_that_first_has_no_sites_is_planned_later(driver):
    engine, net = build()
    net.eval()
    with torch.no_grad():
        nothing = torch.empty((0, 3), dtype=torch.int32), torch.empty((0, 1))
        assert net(net.tensor(*nothing, 10, 2)).shape == (0, 5)
        assert engine.last_pass == "layer by layer: there are no sites"
        assert net(net.tensor(*some_sites(1, 30, 10), 10, 2)).shape[0] > 0
    assert engine.last_pass == PLANNED
