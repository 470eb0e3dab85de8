"""Batches are checked once, and what agreement calls wrong is wrong."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import cases
from backends.agreement import TOLERANCE, compare, finite, rel_rmse
from backends.contract import InvalidBatch, SparseBatch, site_keys
from backends.float64_reference import Reference, reference_method
from backends.loss import event_cross_entropy


def batch(sites, features=None, labels=None, size=8, events=2):
    sites = torch.tensor(sites, dtype=torch.int32)
    features = torch.ones(len(sites), 1) if features is None else features
    return SparseBatch(sites, features, labels, size, events)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: batch([[0, 1, 2, 8]]), r"site 0 \[0, 1, 2, 8\] lies outside a batch of 2 events"),
        (lambda: batch([[0, 1, 2, -1]]), "lies outside"),
        (lambda: batch([[2, 1, 2, 3]]), "lies outside"),
        (lambda: batch([[0, 1, 2, 3], [1, 0, 0, 0], [0, 1, 2, 3]]), "the same site is given twice"),
        (lambda: batch([[0, 1, 2, 3]], torch.tensor([[math.nan]])), "feature that is not finite"),
        (lambda: batch([[0, 1, 2, 3]], torch.ones(2, 1)), r"float32 tensor of shape \(1, C\)"),
        (lambda: batch([[0, 1, 2, 3]], torch.ones(1, 1).double()), "float32"),
        (lambda: batch([[0, 1]]), r"shape \(N, 3\) or \(N, 4\)"),
        (lambda: batch([[0, 1, 2]], labels=torch.zeros(2).long()), "one entry for each of the 1"),
        (lambda: batch([[0, 1, 2]], events=0), "at least 1"),
        (
            lambda: SparseBatch(
                torch.zeros(3, 2, dtype=torch.int32).t(), torch.ones(2, 1), None, 4, 1
            ),
            "contiguous",
        ),
    ],
)
def test_invalid_batches_are_refused(make, words):
    with pytest.raises(InvalidBatch, match=words):
        make()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 255), *[st.integers(0, 767)] * 3), min_size=1, max_size=40,
        unique=True,
    )
)  # fmt: skip
def test_sites_have_keys_of_their_own_even_in_large_batches(sites):
    keys = site_keys(torch.tensor(sites), 768)
    assert len(keys.unique()) == len(sites)
    ordered = sorted(range(len(sites)), key=sites.__getitem__)
    assert keys.argsort().tolist() == ordered


def test_a_batch_is_the_same_on_another_device():
    given_batch = cases.random_sites(3)
    moved = given_batch.to("cpu")
    assert torch.equal(moved.sites, given_batch.sites)
    assert (moved.dim, moved.spatial_size, moved.batch_size) == (3, 16, 2)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_loss_is_the_mean_of_an_event_summed_over_events(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    event = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    logits = torch.randn(len(event), 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (len(event),), generator=generator)
    expected = sum(
        torch.nn.functional.cross_entropy(logits[event == e], labels[event == e]).item()
        for e in range(len(counts))
        if counts[e]
    )
    found = event_cross_entropy(logits, labels, event, len(counts))
    assert found.item() == pytest.approx(expected, abs=1e-12)


LOGITS = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
GRADIENTS = {"a.weight": torch.tensor([1.0, -2.0]), "b.weight": torch.tensor([0.5])}
REFERENCE = Reference(
    LOGITS, torch.tensor(1.0), GRADIENTS, {"n.running_mean": torch.ones(2)}, "dense"
)
STATISTICS = {"n.running_mean": torch.ones(2)}


def spoiled(**changes):
    return {**GRADIENTS, **{name.replace("_", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("logits", "gradients", "statistics", "words"),
    [
        (LOGITS, GRADIENTS, STATISTICS, ""),
        (LOGITS[:1], GRADIENTS, STATISTICS, "the logits have shape (1, 2) instead of (2, 2)"),
        (LOGITS * 1.001, GRADIENTS, STATISTICS, "relative RMSE of the logits is 1.0e-03"),
        (LOGITS * math.nan, GRADIENTS, STATISTICS, "the logits are not finite"),
        (LOGITS, spoiled(a_weight=torch.zeros(2)), STATISTICS, "gradient of a.weight is zero"),
        (LOGITS, spoiled(a_weight=torch.tensor([1, math.inf])), STATISTICS, "is not finite"),
        (LOGITS, {"a.weight": GRADIENTS["a.weight"]}, STATISTICS, "no gradient of b.weight"),
        (LOGITS, spoiled(b_weight=torch.tensor([0.7])), STATISTICS, "relative RMSE of the gradie"),
        (LOGITS, GRADIENTS, {"n.running_mean": torch.zeros(2)}, "statistic of n.running_mean"),
    ],
)
def test_agreement_names_what_is_wrong(logits, gradients, statistics, words):
    found = compare(REFERENCE, "fp32", logits, gradients, statistics)
    assert words in found.reason
    assert found.right == (words == "")


def test_a_gradient_that_vanishes_but_for_rounding_is_no_error():
    tiny = Reference(LOGITS, None, {**GRADIENTS, "c.bias": torch.tensor([1e-17])}, {}, "dense")
    for value in (0.0, 3e-9):
        got = {**GRADIENTS, "c.bias": torch.tensor([value])}
        assert compare(tiny, "fp32", LOGITS, got).right
    assert not compare(tiny, "fp32", LOGITS, {**GRADIENTS, "c.bias": torch.tensor([0.1])}).right


def test_errors_of_a_result():
    found = compare(REFERENCE, "bf16", LOGITS.flip(1))
    assert found.max_abs == 4.0
    assert found.argmax_agreement == 0.0
    assert found.grad_rel_rmse is None
    assert rel_rmse(torch.tensor([2.0]), torch.tensor([1.0])) == 1.0
    assert rel_rmse(torch.tensor([2.0]), torch.tensor([0.0])) == 2.0
    assert rel_rmse(torch.zeros(0), torch.zeros(0)) == 0.0
    assert math.isinf(rel_rmse(torch.tensor([math.nan]), torch.tensor([1.0])))


def test_without_a_reference_results_must_be_finite():
    assert finite(LOGITS, GRADIENTS.values()).right
    assert "logits" in finite(LOGITS / 0).reason
    assert "gradient" in finite(LOGITS, [torch.tensor([math.inf])]).reason


def test_tolerances_grow_as_mantissas_shrink():
    order = ["fp64", "fp32", "tf32", "bf16"]
    for a, b in itertools.pairwise(order):
        assert TOLERANCE[a].forward < TOLERANCE[b].forward
        assert TOLERANCE[a].gradient < TOLERANCE[b].gradient


def test_large_volumes_get_the_reference():
    assert reference_method(cases.random_sites(3)) == "dense"
    assert reference_method(batch([[0, 0, 0, 0]], size=192)) == "reference"
