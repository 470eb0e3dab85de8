"""Networks under ``torch.compile``: the same numbers, whatever the compiler can look into."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from backends import registry, weights
from backends.sscn import kernels
from backends.uresnet import UResNet, UResNetConfig

CONFIG = UResNetConfig(filters=4, depth=2, reps=1)
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself
SETS = ["reference", "cpu"] if find_spec(kernels.COMPILED) else ["reference"]


def network(name: str) -> UResNet:
    backend = registry.load(
        "sscn", dim=3, device="cpu", precision="fp32", options={"kernels": name}
    )
    made = UResNet(backend, CONFIG)
    weights.load(made, weights.initial(CONFIG, 3))
    return made


def tensor(made: UResNet, seed: int):
    generator = torch.Generator().manual_seed(seed)
    sites = (torch.rand(1, 8, 8, 8, generator=generator) < 0.2).nonzero().int()
    features = torch.randn(len(sites), 1, generator=generator)
    return made.tensor(sites, features, 8, 1)


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_batches_of_any_size_give_what_the_plain_network_gives(name, training):
    plain, other = network(name).train(training), network(name).train(training)
    compiled = torch.compile(other, backend="eager")
    for seed in range(3):
        expected, found = plain(tensor(plain, seed)), compiled(tensor(other, seed))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        found.square().sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_with_maps_that_are_there_a_network_is_one_graph(name):
    made = network(name).eval()
    x = tensor(made, 0)
    with torch.no_grad():
        expected = made(x)
        found = torch.compile(made, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected)


def test_the_engine_does_not_import_the_compiler():
    code = "import sys, backends.sscn.adapter; print('torch._dynamo' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
