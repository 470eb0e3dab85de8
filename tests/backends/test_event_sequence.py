"""Results do not depend on earlier computations of a process: they are those of new processes."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from backends.agreement import WITHOUT_JUMPS, rel_rmse
from tests.backends.event_sequence import SEQUENCE, Runner, alone, detached

pytestmark = pytest.mark.agreement

ROOT = Path(__file__).resolve().parents[2]
BITWISE = tomllib.loads(Path(__file__).with_name("determinism.toml").read_text())


def expected_of(item, fresh):
    """Return what an item has to result in, from the results of fresh processes."""
    parts = {suffix: fresh(part) for suffix, part in alone(item).items()}
    if item.phase != "interleaved":
        return parts[""]
    return {
        f"{key} of {name}": value
        for name, found in parts.items()
        for key, value in found.items()
        if not key.endswith(("running_mean", "running_var"))
    }


def differences(item, found, expected, bitwise):
    """Return the names of the results that differ."""
    assert found.keys() == expected.keys()
    if bitwise:
        return [name for name in found if not torch.equal(found[name], expected[name])]
    return [
        name
        for name in found
        if rel_rmse(found[name], expected[name])
        > (WITHOUT_JUMPS.forward if "logits" in name else WITHOUT_JUMPS.gradient)
    ]


def test_a_sequence_of_events_gives_the_results_of_fresh_processes(engine, dim, tmp_path):
    engine.load(dim)  # skips where the engine has no such dimension
    command = [sys.executable, "-m", "tests.backends.event_sequence"]
    child = subprocess.run(
        [*command, engine.name, engine.device, str(dim), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]

    def fresh(item):
        return torch.load(tmp_path / f"{item.name}.pt")

    for place, (item, found) in enumerate(
        zip(SEQUENCE, torch.load(tmp_path / "sequence.pt"), strict=True)
    ):
        phase = "forward" if item.phase in ("forward", "warm") else "step"
        bitwise = engine.device == "cpu" and BITWISE[phase].get(engine.name, False)
        wrong = differences(item, found, expected_of(item, fresh), bitwise)
        assert not wrong, f"call {place}, {item}: {wrong} differ from a fresh process"


@pytest.fixture
def template():
    """The template of an engine, as a module of its own."""
    path = ROOT / "docs" / "engine_template.py"
    spec = importlib.util.spec_from_file_location("retaining", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["retaining"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["retaining"]


def keep_maps(module):
    whole, maps = module.Backend.tensor, {}

    def tensor(self, sites, features, size, batch_size):
        found = whole(self, sites, features, size, batch_size)
        kept = maps.setdefault((size, len(sites)), found.maps)
        return module.Tensor(features, kept, 0)

    module.Backend.tensor = tensor
    return maps.clear


def keep_tensor_of_backward(module):
    """Gradients of weights use the input of the last forward pass."""
    last = {}

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values, weight):
            ctx.save_for_backward(values, weight)
            last[weight.shape] = values
            return values @ weight

        @staticmethod
        def backward(ctx, gradient):
            values, weight = ctx.saved_tensors
            newest = last[weight.shape]
            used = newest if newest.shape == values.shape else values
            return gradient @ weight.T, used.T @ gradient

    def forward(self, x):
        level = x.level - (self.kind is module.Kind.INVERSE)
        pairs = x.maps.pairs(self.kind, level, self.kernel_size)
        level += self.kind is module.Kind.STRIDED
        out = x.values.new_zeros(len(x.maps.sites[level]), self.weight.shape[2])
        for (rows_in, rows_out), matrix in zip(pairs, self.weight, strict=True):
            out = out.index_add(0, rows_out, Product.apply(x.values[rows_in], matrix))
        return module.Tensor(out, x.maps, level)

    module.Convolution.forward = forward
    return last.clear


@pytest.mark.parametrize(
    ("defect", "phases"),
    [(None, set()), (keep_maps, {"forward", "step"}), (keep_tensor_of_backward, {"interleaved"})],
)
def test_a_sequence_reveals_what_an_engine_keeps(template, defect, phases):
    forget = defect(template) if defect else lambda: None

    def fresh(item):
        forget()
        return detached(Runner(template.Backend(2, "cpu", "fp32", {}), 2).run(item))

    expected = [expected_of(item, fresh) for item in SEQUENCE]
    forget()
    runner = Runner(template.Backend(2, "cpu", "fp32", {}), 2)
    found = [detached(runner.run(item)) for item in SEQUENCE]
    wrong = {
        item.phase
        for item, one, other in zip(SEQUENCE, found, expected, strict=True)
        if differences(item, one, other, bitwise=True)
    }
    assert phases <= wrong
    assert bool(phases) == bool(wrong)
