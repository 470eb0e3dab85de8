"""What a pass of the ``cuda`` kernels does on the device, counted on a machine without one."""

import os

import pytest

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter launches nothing", allow_module_level=True)

from backends.sscn.planned_network import PLANNED
from benchmarks.gpu import work
from benchmarks.gpu.passes import Passes, record


@pytest.fixture(scope="module")
def passes():
    return Passes(192, 4)


@pytest.mark.parametrize(
    ("mode", "operations", "allocations", "waits"),
    [("cold", 61, 5, [4]), ("warm", 53, 3, []), ("step", 189, 15, [4])],
)
def test_a_planned_pass_does_no_more_on_the_device(mode, operations, allocations, waits):
    passes = Passes(192, 4)
    found = record(passes, mode, planned=True)
    assert passes.engine.last_pass == PLANNED
    assert found.device_operations <= operations
    assert found.allocations <= allocations
    assert found.waits == waits


@pytest.mark.parametrize(
    ("mode", "operations", "waits"), [("cold", 62, [4]), ("warm", 53, []), ("step", 321, [4])]
)
def test_layer_by_layer_a_pass_does_no_more_either(passes, mode, operations, waits):
    found = record(passes, mode)
    assert found.device_operations <= operations
    assert found.waits == waits


def test_convolutions_have_no_longer_chains_and_no_fewer_programs(passes):
    found = work.convolutions(passes)
    assert len(found) == 50
    assert sum(each.longest for each in found) <= 449
    assert work.fewest_programs(found) >= 174
