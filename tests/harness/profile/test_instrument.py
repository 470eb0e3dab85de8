"""Ranges on real engines: everything is seen, nothing is changed, and it sums to the call."""

import pytest
import torch

from backends import registry
from backends.contract import SparseBatch
from harness.profile.backward import sequence_number
from harness.profile.instrument import bytes_per_number, kind_of
from harness.profile.ranges import RangeKey, RangeRecorder, SelfTime, self_times
from harness.profile.timing import record_call, typical_self_times
from harness.run.job import Job
from harness.run.workload import Workload
from harness.spec.cell import Cell, ModelSpec

ENGINES = ("sscn", "dense", "spconv", "minkowski")
MODEL = ModelSpec(filters=4, depth=3, reps=1)


def build_workload(engine, phase, state, precision="fp32"):
    generator = torch.Generator().manual_seed(3)
    coordinates = torch.randint(0, 16, (400, 3), generator=generator)
    batch = torch.randint(0, 2, (400, 1), generator=generator)
    sites = torch.cat([batch, coordinates], 1).unique(dim=0).to(torch.int32)
    features = torch.rand((len(sites), 1), generator=generator)
    labels = torch.randint(0, 5, (len(sites),), generator=generator)
    cell = Cell("profile", engine, 16, 2, phase, state, precision=precision, model=MODEL)
    return Workload(Job(cell), SparseBatch(sites.contiguous(), features, labels, 16, 2))


@pytest.fixture(params=ENGINES)
def name(request):
    found = registry.probe(request.param)
    if found.capabilities is None:
        pytest.skip(found.reason)
    return request.param


def passed(workload):
    return record_call(workload, workload.call(), RangeRecorder(sequence=sequence_number))


def test_every_layer_has_times_in_both_directions(name):
    workload = build_workload(name, "step", "cold")
    recorded = passed(workload)
    found = self_times(recorded)
    for path, layer in workload.network.layers():
        key = RangeKey(path, kind_of(layer.kind), "forward")
        assert found[key].calls == 1
        # Operations that are fused into a convolution run backward with it.
        if key.kind not in getattr(workload.backend, "fused", ()):
            assert key._replace(direction="backward") in found
    kinds = {(key.kind, key.direction) for key in found}
    assert {("loss", "forward"), ("loss", "backward"), ("optimiser", "step")} <= kinds
    assert {("add", "forward"), ("join", "forward"), ("input", "forward")} <= kinds
    assert {("host", direction) for direction in ("forward", "backward", "step")} <= kinds
    whole = recorded.times[-1] - recorded.times[0]
    assert sum(one.seconds for one in found.values()) <= whole


def test_the_construction_of_maps_is_separate_from_convolutions(name):
    def maps(state):
        workload = build_workload(name, "forward", state)
        passed(workload)
        return [key for key in self_times(passed(workload)) if key.kind == "map"]

    built = maps("cold")
    assert built
    if name != "dense":  # whose sites of the finest level need no map
        assert RangeKey("stem", "map", "forward") in built
    assert not maps("warm")


@pytest.mark.parametrize("phase", ["forward", "step"])
def test_instruments_change_no_result_and_are_removed(name, phase):
    workload = build_workload(name, phase, "cold")
    plain = workload.call()()
    workload.reset()
    before = {path: dict(vars(module)) for path, module in workload.network.named_modules()}
    backend = dict(vars(workload.backend))
    ranges = RangeRecorder(sequence=sequence_number)
    watched = None

    def call():
        nonlocal watched
        watched = workload.call()()

    record_call(workload, call, ranges)
    exact = name not in ("spconv", "minkowski")  # whose threads add in any order
    tolerance = {"atol": 0, "rtol": 0} if exact else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(watched, plain, **tolerance)
    for path, module in workload.network.named_modules():
        assert vars(module).keys() == before[path].keys()
        assert vars(module).get("backend") is before[path].get("backend")
    assert vars(workload.backend).keys() == backend.keys()
    assert "step" not in vars(workload.optimizer)
    workload.call()()  # and without ranges it still runs


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 4), ("fp64", 8)])
def test_rows_have_the_size_that_the_engine_stores(precision, size):
    workload = build_workload("sscn", "step", "cold", precision)
    before = [value.clone() for value in workload.network.parameters()]
    assert bytes_per_number(workload, workload.call()) == size
    assert all(map(torch.equal, before, workload.network.parameters()))


def test_shares_are_averaged_over_the_middle_half_of_the_calls():
    layer, late = RangeKey("a", "add", "forward"), RangeKey("b", "add", "forward")
    passes = [{layer: SelfTime(seconds, 1)} for seconds in (1.0, 2.0, 4.0, 100.0)]
    assert typical_self_times(passes, [1.0] * 4) == {layer: SelfTime(3.0, 1)}
    both = [{layer: SelfTime(1.0, 1)}, {layer: SelfTime(1.0, 1), late: SelfTime(1.0, 2)}]
    assert typical_self_times(both, [1.0, 1.0])[late] == (0.5, 2)


def test_passes_on_a_machine_of_two_speeds_sum_to_the_cell():
    first, second = RangeKey("a", "add", "forward"), RangeKey("b", "add", "forward")
    speeds = (1.0, 2.0, 1.0, 1.0, 2.0)
    passes = [
        {first: SelfTime(0.3 * speed, 1), second: SelfTime(0.7 * speed, 1)} for speed in speeds
    ]
    found = typical_self_times(passes, speeds)
    assert sum(one.seconds for one in found.values()) == pytest.approx(1.0)
    assert found[first].seconds == pytest.approx(0.3)
