"""Muon makes orthogonal updates that do not depend on the engine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import network, registry, weights
from backends.contract import Kind
from backends.uresnet import UResNetConfig
from harness.errors import BadInput
from harness.study import optimiser

CONFIG = UResNetConfig(filters=4, depth=2, reps=1)


def built(name):
    backend = registry.load(name, dim=3, device="cpu", precision="fp32")
    made = network.build(backend, CONFIG)
    network.reset(made, weights.initial(CONFIG, 3))
    return made


def with_gradients(name, gradients):
    """A network whose parameters have the given canonical gradients."""
    made = built(name)
    for path, layer in made.layers():
        for part, parameter in made.backend.parameters(layer.native).items():
            if not isinstance(parameter, torch.nn.Parameter):
                continue
            value = gradients[f"{path}.{part}"]
            if part == "weight" and layer.kind is not Kind.NORM:
                value = made.backend.to_native(layer.kind, value)
            parameter.grad = value.reshape(parameter.shape).clone()
    return made


def random_gradients():
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in weights.initial(CONFIG, 3).items()
    }


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    size=st.floats(1e-12, 1e6),
    seed=st.integers(0, 2**31),
)
def test_singular_values_become_about_one_and_vectors_stay(rows, columns, size, seed):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(drawn.double(), full_matrices=False)
    well = values.clamp(min=float(values[0]) / 50)  # what the five rounds can lift
    (made,) = optimiser.orthogonal([(left @ (well[:, None] * right)).float() * size])
    turned = left.mT @ made.double() @ right.mT
    diagonal = turned.diagonal()
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    torch.testing.assert_close(turned, torch.diag(diagonal), rtol=0, atol=2e-3)


def test_a_gradient_of_zeros_gives_an_update_of_zeros():
    assert not optimiser.orthogonal([torch.zeros(3, 5)])[0].any()


@pytest.mark.parametrize("other", ["dense", "spconv", "minkowski"])
def test_updates_do_not_depend_on_the_layout_of_an_engine(other):
    if registry.probe(other).capabilities is None:
        pytest.skip(f"{other} cannot run here")
    gradients, moved = random_gradients(), {}
    for name in ("sscn", other):
        made = with_gradients(name, gradients)
        muon = optimiser.make_optimiser("muon", made, 0.1)
        for _ in range(3):
            muon.step()
        moved[name] = weights.dump(made)
    for path, value in moved["sscn"].items():
        torch.testing.assert_close(moved[other][path], value, rtol=1e-4, atol=1e-5)


def test_the_length_of_an_update_is_proportional_to_the_rate():
    gradients = random_gradients()
    before = weights.initial(CONFIG, 3)
    made = with_gradients("sscn", gradients)
    muon = optimiser.make_optimiser("muon", made, 0.0)
    for group in muon.param_groups:
        group["lr"] = 0.01
    muon.step()
    after = weights.dump(made)
    for name, layer in made.layers():
        step = after[f"{name}.weight"] - before[f"{name}.weight"]
        length = float(step.square().mean().sqrt())
        if layer.kind is Kind.NORM:
            assert length == pytest.approx(0.01, rel=1e-3)  # Adam's first step
        else:
            assert 0.7 * 0.006 < length < 1.3 * 0.006, name
        assert float((step * gradients[f"{name}.weight"]).sum()) < 0, name


def test_layers_without_gradients_are_unchanged():
    made = with_gradients("sscn", random_gradients())
    frozen = next(layer for name, layer in made.layers() if name == "stem").native.weight
    frozen.grad = None
    before = frozen.detach().clone()
    optimiser.make_optimiser("muon", made, 0.1).step()
    assert torch.equal(frozen, before)


def test_unknown_optimisers_and_networks_are_refused():
    with pytest.raises(BadInput, match="choose one of adam, muon"):
        optimiser.make_optimiser("sgd", built("sscn"), 0.1)
    with pytest.raises(BadInput, match="choose adam"):
        optimiser.make_optimiser("muon", torch.nn.Linear(2, 2), 0.1)
