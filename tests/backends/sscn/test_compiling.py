"""Networks under ``torch.compile`` give the results of networks that are not compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from backends import weights
from backends.uresnet import UResNet, UResNetConfig
from tests.backends.sscn.sets import COMPILED, SETS, engine

CONFIG = UResNetConfig(filters=4, depth=2, reps=1)
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler warns about its own code
ENGINES = [(name, "fp32") for name in SETS] + [("cpu", "bf16")] * COMPILED


def network(name: str, precision: str) -> UResNet:
    made = UResNet(engine(name, precision), CONFIG)
    weights.load(made, weights.initial(CONFIG, 3))
    return made


def tensor(made: UResNet, seed: int):
    generator = torch.Generator().manual_seed(seed)
    sites = (torch.rand(1, 8, 8, 8, generator=generator) < 0.2).nonzero().int()
    features = torch.randn(len(sites), 1, generator=generator)
    return made.tensor(sites, features, 8, 1)


@pytest.fixture(autouse=True)
def without_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "precision"), ENGINES)
@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_batches_of_any_size_give_the_results_of_the_plain_network(name, precision, training):
    plain, other = (network(name, precision).train(training) for _ in range(2))
    compiled = torch.compile(other, backend="eager")
    for seed in range(3):
        expected, found = plain(tensor(plain, seed)), compiled(tensor(other, seed))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        found.square().sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_with_maps_that_are_built_a_network_is_one_graph(name, precision):
    made = network(name, precision).eval()
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
