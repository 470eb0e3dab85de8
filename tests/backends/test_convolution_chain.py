"""Dilation: ordinary convolutions spread sites as they should, on every engine that has them."""

import pytest
import torch

from backends import cases, convolution_chain, registry, weights
from backends.agreement import TOLERANCE, WITHOUT_JUMPS, compare
from backends.contract import Kind, Unsupported, master_dtype
from harness.run.job import Job
from harness.run.plan import unavailable_reason
from harness.run.workload import Workload
from harness.spec.cell import Cell, ModelSpec
from suites.dilation import ENGINES, SUITE

KINDS = (Kind.SUBMANIFOLD, Kind.ORDINARY)


def stack_on(backend, config, values):
    built = convolution_chain.ConvolutionChain(backend, config).to(
        backend.device, master_dtype(backend.precision)
    )
    weights.load(built, values)
    return built


def run(built, batch):
    batch = batch.to(built.backend.device)
    features = batch.features.to(master_dtype(built.backend.precision))
    x = built.tensor(batch.sites, features, batch.spatial_size, batch.batch_size)
    with torch.no_grad():
        return built(x)


@pytest.mark.agreement
@pytest.mark.parametrize("case", ["random_sites", "faces_and_corners", "empty_members"])
@pytest.mark.parametrize("kind", KINDS)
def test_chains_agree_with_float64(arithmetic, dim, kind, case):
    if kind not in arithmetic.capabilities.kinds:
        pytest.skip(f"{arithmetic.name} has no {kind} convolution")
    if arithmetic.precision in ("fp16", "bf16", "tf32"):
        pytest.skip("16 bits are too few for a chain without norms")
    batch = cases.CASES[case](dim)
    config = convolution_chain.ChainConfig(kind, 3, 4)
    values = convolution_chain.initial(config, dim)
    expected = convolution_chain.chain_reference(config, values, batch)
    got = run(stack_on(arithmetic.load(dim), config, values), batch)
    bounds = WITHOUT_JUMPS if arithmetic.precision == "fp32" else TOLERANCE[arithmetic.precision]
    found = compare(
        expected, arithmetic.precision, convolution_chain.sorted_columns(got), tolerance=bounds
    )
    assert found.right, found.reason


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_site_becomes_a_cube(engine, dim, count):
    if Kind.ORDINARY not in engine.capabilities.kinds:
        pytest.skip(f"{engine.name} has no ordinary convolution")
    batch = cases.batch_of([[0] + [0] * dim], 16, 1)  # in a corner: it must grow outwards too
    for kind, expected in ((Kind.ORDINARY, (2 * count + 1) ** dim), (Kind.SUBMANIFOLD, 1)):
        config = convolution_chain.ChainConfig(kind, count, 2)
        built = stack_on(engine.load(dim), config, convolution_chain.initial(config, dim))
        assert len(run(built, batch)) == expected


def test_the_dense_engine_computes_the_same_chain(dim):
    batch = cases.random_sites(dim)
    config = convolution_chain.ChainConfig(Kind.ORDINARY, 2, 3)
    values = convolution_chain.initial(config, dim)
    dense = registry.load("dense", dim=dim, device="cpu", precision="fp64")
    got = run(stack_on(dense, config, values), batch)
    expected = convolution_chain.chain_reference(config, values, batch)
    assert compare(expected, "fp64", convolution_chain.sorted_columns(got)).right


def test_engines_without_the_operation_say_so(engine):
    if Kind.ORDINARY in engine.capabilities.kinds:
        assert engine.name in ENGINES
        return
    cell = next(cell for cell in SUITE.cells(backends=["sscn"]) if cell.phase == "ordinary")
    cell = Cell(**{**vars(cell), "backend": engine.name, "dim": 3})
    found = registry.Availability(engine.name, engine.capabilities)
    assert unavailable_reason(cell, found) == f"{engine.name} has no ordinary convolution"
    with pytest.raises(Unsupported, match="ordinary"):
        engine.load(3).convolution(Kind.ORDINARY, 1, 1, 3, 0)


def test_a_cell_of_the_suite_is_checked_and_counted():
    counts = {}
    for phase in ("ordinary", "submanifold"):
        cell = Cell("dilation", "sscn", 192, 1, phase, "cold", model=ModelSpec(depth=2))
        subject = Workload(Job(cell), cases.random_sites(3))
        subject.call()()
        config = convolution_chain.ChainConfig(Kind(phase), 2, 16)
        reference = convolution_chain.chain_reference(
            config, convolution_chain.initial(config, 3), cases.random_sites(3)
        )
        agreement, loss_error = subject.check(reference)
        assert agreement.right
        assert loss_error is None
        counts[phase] = subject.results(reference)["active_sites"]
    assert counts["submanifold"] == 240
    assert counts["ordinary"] > 10 * counts["submanifold"]


def test_the_suite_has_one_to_five_convolutions_in_2d_and_3d():
    cells = SUITE.cells()
    asked = {(cell.dim, cell.phase, cell.model.depth) for cell in cells}
    assert asked == {(d, p, n) for d in (2, 3) for p in KINDS for n in range(1, 6)}
