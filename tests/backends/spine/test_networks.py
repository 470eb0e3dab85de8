"""SPINE's networks on engines of this project compute what they compute on MinkowskiEngine."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.backends.spine.run_networks import CASES, runs
from tests.conftest import probed

pytest.importorskip("spine")
pytestmark = [pytest.mark.spine]

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = "minkowski as shipped"
ENGINES = ("sscn", "spconv", "minkowski", "ocnn", "dense")
ALWAYS = ("sscn", "spconv")
"""Each engine starts a process of several seconds: the others are slow tests."""

SEGMENTATIONS = (*CASES, "duplicates")


def pairs(cases):
    """List engines and the cases that they run."""
    return [
        pytest.param(engine, case, marks=[] if engine in ALWAYS else pytest.mark.slow)
        for engine in ENGINES
        for case in cases
        if runs(engine, case)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")

    @functools.cache
    def run(backend):
        engine = "minkowski" if backend == SHIPPED else backend
        if probed()[engine].capabilities is None:
            pytest.skip(f"{engine} is not installed")
        target = folder / f"{backend}.pt"
        command = [sys.executable, "-m", "tests.backends.spine.run_networks", backend, target]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return child.stderr if child.returncode else torch.load(target)

    def results_of(backend):
        found = run(backend)
        assert isinstance(found, dict), found
        return found

    return results_of


def error(found, expected):
    """Return the largest relative error of tensors, matched by name or place."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        return max(error(found[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        return max(map(error, found, expected), default=0.0)
    assert found.shape == expected.shape
    scale = expected.double().norm().clamp_min(1e-6)
    return float((found.double() - expected.double()).norm() / scale)


@pytest.mark.parametrize(("behind", "case"), pairs(SEGMENTATIONS))
def test_segmentation_is_that_of_minkowskiengine(results, behind, case):
    """Initial state, logits, gradients, planes and running statistics, over two steps in fp64."""
    expected, found = results(SHIPPED)[case], results(behind)[case]
    assert error(found["initial"], expected["initial"]) == 0
    for part, values in expected.items():
        assert error(found[part], values) < 1e-8, part


@pytest.mark.parametrize(("behind", "case"), pairs(["points", "points, ghosts"]))
def test_point_proposals_are_those_of_minkowskiengine(results, behind, case):
    expected, found = results(SHIPPED)[case], results(behind)[case]
    for part, values in expected.items():
        assert error(found[part], values) < 1e-8, part
