"""Every engine that can run here computes the function that float64 says it should."""

import itertools
import os
from functools import cache

import pytest
import torch

from backends import cases, defects, registry, weights
from backends.agreement import TOLERANCE, WITHOUT_JUMPS, compare, rel_rmse
from backends.arithmetic import autocast
from backends.float64_reference import DENSE_VOXELS, compute_reference, reference_network
from backends.loss import event_cross_entropy
from backends.uresnet import UResNetConfig

pytestmark = pytest.mark.agreement

REAL = UResNetConfig(filters=8, depth=5, reps=1)


@pytest.fixture(autouse=True)
def _expect_known_failures(request):
    """Turn what the data file lists into strict expected failures."""
    parameters = getattr(request.node, "callspec", None)
    engine = parameters.params.get("arithmetic") if parameters else None
    for defect in defects.known(engine.name) if engine else ():
        here = defect.device in ("", engine.device)
        if here and defect.test and defect.test in request.node.name:
            request.applymarker(pytest.mark.xfail(reason=defect.symptom, strict=True))


def tolerance(engine):
    return WITHOUT_JUMPS if engine.precision == "fp32" else TOLERANCE[engine.precision]


@pytest.mark.parametrize("case", cases.CASES)
def test_logits_gradients_and_statistics(arithmetic, dim, case):
    network = None
    for phase in ("forward", "step"):
        batch, values, expected = cases.with_reference(case, dim, cases.SMALL, phase)
        network = network or cases.network_on(arithmetic.load(dim), cases.SMALL, values)
        got = getattr(cases, phase)(network, batch)
        found = compare(
            expected,
            arithmetic.precision,
            got.logits,
            got.gradients,
            got.statistics,
            tolerance=tolerance(arithmetic),
        )
        assert found.right, f"{phase}: {found.reason}"
        if expected.loss is not None:
            assert rel_rmse(got.loss, expected.loss) < tolerance(arithmetic).forward


@pytest.mark.parametrize(
    "config",
    [
        UResNetConfig(4, 3, 1, classes=2, in_channels=2, slope=0.33, eps=1e-3, momentum=0.1),
        pytest.param(UResNetConfig(32, 5, 2, slope=0.33), marks=pytest.mark.slow),
        pytest.param(UResNetConfig(64, 3, 1, classes=2), marks=pytest.mark.slow),
        pytest.param(UResNetConfig(16, 7, 1, in_channels=2, slope=0.33), marks=pytest.mark.slow),
    ],
    ids=("small", "spine", "64 filters", "depth 7"),
)
def test_networks_of_the_family(arithmetic, dim, config):
    case = "wide_volume" if config.depth >= 5 else "random_sites"
    if (case, arithmetic.name) == ("wide_volume", "dense"):
        pytest.skip("2 x 256^3 voxels are too many for a dense volume here")
    batch, values, expected = cases.with_reference(case, dim, config, "step")
    network = cases.network_on(arithmetic.load(dim), config, values)
    inference = compare(
        cases.with_reference(case, dim, config, "forward")[2],
        arithmetic.precision,
        cases.forward(network, batch).logits,
        tolerance=tolerance(arithmetic),
    )
    assert inference.right, inference.reason
    got = cases.step(network, batch)
    found = compare(
        expected,
        arithmetic.precision,
        got.logits,
        got.gradients,
        got.statistics,
        tolerance=tolerance(arithmetic),
    )
    assert found.right, found.reason


@pytest.mark.parametrize("case", ["random_sites", "odd_size"])
def test_networks_with_inputs_of_relus_near_zero(arithmetic, dim, case):
    batch, values, expected = cases.with_reference(
        case, dim, cases.SMALL, "step", without_jumps=False
    )
    got = cases.step(cases.network_on(arithmetic.load(dim), cases.SMALL, values), batch)
    found = compare(expected, arithmetic.precision, got.logits, got.gradients, got.statistics)
    assert found.right, found.reason


def test_one_site(arithmetic, dim):
    # A norm has no variance for a single site: training is undefined, and an error in torch.
    batch, values, expected = cases.with_reference("one_site", dim, cases.SMALL, "forward")
    network = cases.network_on(arithmetic.load(dim), cases.SMALL, values)
    found = compare(expected, arithmetic.precision, cases.forward(network, batch).logits)
    assert found.right, found.reason


def test_ten_optimiser_steps(arithmetic):
    if arithmetic.precision in ("fp16", "bf16", "tf32"):
        pytest.skip("ten steps compare to the digits of fp32 and fp64 only")
    batch, values, _ = cases.with_reference("random_sites", 3, cases.SMALL, "step")
    ours = cases.network_on(arithmetic.load(3), cases.SMALL, values)
    dense = reference_network(cases.SMALL, values, 3, method="dense")
    for network in (ours, dense):
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(10):
            cases.step(network, batch)
            optimiser.step()
    got, expected = weights.dump(ours), weights.dump(dense)
    start = torch.cat([values[name].double().flatten() for name in expected])
    moved, truly = (
        torch.cat([weight[name].double().flatten() for name in expected]) - start
        for weight in (got, expected)
    )
    # A movement is a small difference of weights: fp32 leaves it four of its digits.
    assert rel_rmse(moved, truly) < (1e-10 if arithmetic.precision == "fp64" else 1e-3)


@cache
def real_events(size, batch):
    from harness.events import benchmark_batch, open_sample

    arrays, _ = benchmark_batch(open_sample(size), batch, 0)
    tensors = [torch.from_numpy(arrays[key]) for key in ("sites", "features", "labels")]
    return cases.SparseBatch(*(t.contiguous() for t in tensors), size, batch)


@cache
def real_truth(size, batch, phase):
    values = cases.weights_without_jumps(REAL, 3)
    return values, compute_reference(REAL, values, real_events(size, batch), step=phase == "step")


def needs_volume(engine, size, batch):
    if engine.name == "dense" and batch * size**3 > DENSE_VOXELS:
        pytest.skip(f"{batch} x {size}^3 voxels are too many for a dense volume here")


@pytest.mark.parametrize("size", [192, 512, 768])
def test_real_events(arithmetic, size):
    needs_volume(arithmetic, size, 1)
    values, expected = real_truth(size, 1, "step")
    network = cases.network_on(arithmetic.load(3), REAL, values)
    got = cases.step(network, real_events(size, 1))
    found = compare(
        expected,
        arithmetic.precision,
        got.logits,
        got.gradients,
        got.statistics,
        tolerance=tolerance(arithmetic),
    )
    assert found.right, found.reason


@pytest.mark.slow
def test_a_batch_of_64_events_of_768_px(arithmetic):
    # 64 x 768^3 is 2.9e10 voxels: 32-bit indices of voxels overflow, and hashes meet far corners.
    needs_volume(arithmetic, 768, 64)
    values, expected = real_truth(768, 64, "forward")
    network = cases.network_on(arithmetic.load(3), REAL, values)
    got = cases.forward(network, real_events(768, 64))
    found = compare(expected, arithmetic.precision, got.logits)
    assert found.right, found.reason


def test_the_far_corners_of_a_batch_of_64_at_768_px(arithmetic):
    needs_volume(arithmetic, 768, 64)
    corners = list(itertools.product(*[(0, 1, 766, 767)] * 3))
    sites = [(event, *corner) for event in (0, 31, 63) for corner in corners]
    batch = cases.batch_of(sites, 768, 64)
    values = weights.initial(cases.SMALL, 3)
    expected = compute_reference(cases.SMALL, values, batch, step=True)
    got = cases.step(cases.network_on(arithmetic.load(3), cases.SMALL, values), batch)
    found = compare(expected, arithmetic.precision, got.logits, got.gradients, got.statistics)
    assert found.right, found.reason


def test_sites_that_are_a_view_of_other_memory(engine, dim):
    batch, values, expected = cases.with_reference("random_sites", dim, cases.SMALL, "forward")
    view = batch.sites.t().contiguous().t()
    assert not view.is_contiguous()
    network = cases.network_on(engine.load(dim), cases.SMALL, values).eval()
    with torch.no_grad():
        x = network.tensor(
            view.to(engine.device), batch.features.to(engine.device), batch.spatial_size, 2
        )
        found = compare(expected, engine.precision, network(x))
    assert found.right, found.reason


def test_the_reference_is_the_dense_network(dim):
    for case in cases.CASES:
        batch, values, dense = cases.with_reference(
            case, dim, cases.SMALL, "step", without_jumps=False
        )
        assert dense.method == "dense"
        other = compute_reference(cases.SMALL, values, batch, step=True, method="reference")
        found = compare(dense, "fp64", other.logits, other.gradients, other.statistics)
        assert found.right, found.reason


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a race needs two processors")
def test_the_race_in_spconv_is_caught():
    """Without its workaround, spconv's CPU wheel is wrong with two threads, and we see it."""
    found = registry.probe("spconv")
    if found.capabilities is None:
        pytest.skip(f"spconv: {found.reason}")
    batch = real_events(192, 4)
    wide = UResNetConfig(filters=16, depth=2, reps=1)
    values = cases.weights_without_jumps(wide, 3)
    expected = compute_reference(wide, values, batch, step=True)
    threads = torch.get_num_threads()
    reasons = []
    try:
        torch.set_num_threads(2)
        for scatter, tries in (("as-shipped", 5), ("one-thread", 2)):
            backend = registry.load(
                "spconv", dim=3, device="cpu", precision="fp32", options={"scatter": scatter}
            )
            for _ in range(tries):
                network = cases.network_on(backend, wide, values)
                with autocast("fp32", "cpu"):
                    logits = network(cases.tensor_of(network, batch))
                event_cross_entropy(logits, batch.labels, batch.sites[:, 0], 4).backward()
                agreement = compare(expected, "fp32", logits, weights.gradients(network))
                reasons.append((scatter, agreement.reason))
                if scatter == "as-shipped" and agreement.reason:
                    break
    finally:
        torch.set_num_threads(threads)
        registry.load("spconv", dim=3, device="cpu", precision="fp32")
    assert any("relative RMSE" in reason for scatter, reason in reasons if scatter == "as-shipped")
    assert not any(reason for scatter, reason in reasons if scatter == "one-thread")
