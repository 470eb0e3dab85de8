import itertools
import json

import pytest
import torch

from harness.errors import BadInput
from harness.profile import ceilings
from harness.profile.ceilings import Ceilings
from tests.harness.profile.made import CEILINGS


def test_the_best_of_several_tries_counts(monkeypatch):
    from backends.sscn.cpu import processor

    monkeypatch.setattr(processor, "peak", lambda rounds, doubles, threads: 100.0 * threads)
    ticks = itertools.accumulate(itertools.cycle([0.0, 4.0, 0.0, 2.0]))
    assert ceilings.fma_peak(3, now=lambda: next(ticks)) == pytest.approx(150.0)


def test_least_seconds_leaves_the_first_call_out():
    calls = []
    ticks = itertools.accumulate([0.0, 5.0] + [0.0, 3.0] * ceilings.REPEATS)
    found = ceilings.least_seconds(lambda: calls.append(1), "cpu", now=lambda: next(ticks))
    assert found == 3.0
    assert len(calls) == 1 + ceilings.REPEATS


@pytest.fixture
def quick(monkeypatch):
    """Ceilings without their cost: the numbers do not matter."""
    monkeypatch.setattr(ceilings, "REPEATS", 2)
    monkeypatch.setattr(ceilings, "ROUNDS", 10_000)
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64,)})


@pytest.mark.parametrize(
    ("precision", "methods"),
    [
        ("fp32", {"fp32": "registers"}),
        ("fp64", {"fp32": "registers", "fp64": "registers"}),
        ("bf16", {"fp32": "registers", "bf16": "matmul"}),
    ],
)
def test_a_cpu_has_every_ceiling(precision, methods, quick):
    before = torch.get_num_threads()
    found = ceilings.measure_ceilings(precision, "cpu", threads=1)
    assert torch.get_num_threads() == before
    assert dict(found.methods) == methods
    assert set(found.flops) == set(methods)
    assert found.threads == 1
    assert all(value > 0 for value in (*found.flops.values(), found.copy, found.launch))
    assert Ceilings.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_other_products_use_tf32_only_where_asked(quick, monkeypatch):
    seen = []
    whole = torch.mm

    def watched(*arguments, **named):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return whole(*arguments, **named)

    monkeypatch.setattr(torch, "mm", watched)
    before = torch.backends.cuda.matmul.allow_tf32
    for precision, allowed in (("tf32", True), ("fp64", False)):
        seen.clear()
        ceilings.matmul_peak(precision, "cpu")
        assert set(seen) == {allowed}
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize(
    "change",
    [{"copy": 0}, {"flops": {"fp32": -1}}, {"flops": 3}, {"launch": "fast"}, {"speed": 1}],
)
def test_ceilings_without_meaning_are_refused(change):
    with pytest.raises(BadInput):
        Ceilings.from_json(CEILINGS | change)


@pytest.mark.cuda
def test_a_gpu_has_every_ceiling():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    found = ceilings.measure_ceilings("bf16", "cuda")
    assert found.flops["bf16"] > found.flops["fp32"]
    assert found.launch < 1e-3


def test_fp64_has_half_the_peak_of_fp32():
    from backends.sscn.cpu import processor

    assert processor.peak(10, True, 3) == processor.peak(10, False, 3) / 2 > 0
