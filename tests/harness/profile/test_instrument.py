"""Ranges on real engines: everything is seen, nothing is changed, and it sums to the call."""

import pytest
import torch

from backends import registry
from backends.contract import SparseBatch
from harness.profile.child import merged, note
from harness.profile.instrument import kind_of
from harness.profile.ranges import Key, Ranges, Spent, spent
from harness.run.workload import Workload
from harness.spec.cell import Cell, ModelSpec

ENGINES = ("sscn", "dense", "spconv", "minkowski")
MODEL = ModelSpec(filters=4, depth=3, reps=1)


def build_workload(engine, phase, state):
    generator = torch.Generator().manual_seed(3)
    coordinates = torch.randint(0, 16, (400, 3), generator=generator)
    batch = torch.randint(0, 2, (400, 1), generator=generator)
    sites = torch.cat([batch, coordinates], 1).unique(dim=0).to(torch.int32)
    features = torch.rand((len(sites), 1), generator=generator)
    labels = torch.randint(0, 5, (len(sites),), generator=generator)
    cell = Cell("profile", engine, 16, 2, phase, state, model=MODEL)
    return Workload(cell, SparseBatch(sites.contiguous(), features, labels, 16, 2))


@pytest.fixture(params=ENGINES)
def name(request):
    found = registry.probe(request.param)
    if found.capabilities is None:
        pytest.skip(found.reason)
    return request.param


def passed(subject):
    return note(subject, subject.call(), Ranges(sequence=torch.autograd._get_sequence_nr))


def test_every_layer_is_seen_in_both_directions(name):
    subject = build_workload(name, "step", "cold")
    noted = passed(subject)
    found = spent(noted)
    for path, layer in subject.network.layers():
        key = Key(path, kind_of(layer.kind), "forward")
        assert found[key].calls == 1
        # What is fused into a convolution runs backward with it.
        if key.kind not in getattr(subject.backend, "fused", ()):
            assert key._replace(direction="backward") in found
    kinds = {(key.kind, key.direction) for key in found}
    assert {("loss", "forward"), ("loss", "backward"), ("optimiser", "step")} <= kinds
    assert {("add", "forward"), ("join", "forward"), ("input", "forward")} <= kinds
    assert {("host", direction) for direction in ("forward", "backward", "step")} <= kinds
    whole = noted.times[-1] - noted.times[0]
    assert sum(one.seconds for one in found.values()) <= whole


def test_maps_are_told_apart_where_they_are_built(name):
    def maps(state):
        subject = build_workload(name, "forward", state)
        passed(subject)
        return [key for key in spent(passed(subject)) if key.kind == "map"]

    built = maps("cold")
    assert built
    if name != "dense":  # whose sites of the finest level need no map
        assert Key("stem", "map", "forward") in built
    assert not maps("warm")


@pytest.mark.parametrize("phase", ["forward", "step"])
def test_the_result_is_the_same_and_nothing_stays_behind(name, phase):
    subject = build_workload(name, phase, "cold")
    plain = subject.call()()
    subject.reset()
    before = {path: dict(vars(module)) for path, module in subject.network.named_modules()}
    backend = dict(vars(subject.backend))
    ranges = Ranges(sequence=torch.autograd._get_sequence_nr)
    watched = None

    def call():
        nonlocal watched
        watched = subject.call()()

    note(subject, call, ranges)
    tolerance = {"atol": 0, "rtol": 0} if name != "spconv" else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(watched, plain, **tolerance)
    for path, module in subject.network.named_modules():
        assert vars(module).keys() == before[path].keys()
        assert vars(module).get("backend") is before[path].get("backend")
    assert vars(subject.backend).keys() == backend.keys()
    assert "step" not in vars(subject.optimizer)
    subject.call()()  # and without ranges it still runs


def test_passes_are_merged_by_the_middle_of_their_times_over_the_call_beside_them():
    layer, late = Key("a", "add", "forward"), Key("b", "add", "forward")
    passes = [{layer: Spent(seconds, 1)} for seconds in (1.0, 2.0, 4.0, 100.0)]
    assert merged(passes, [1.0] * 4) == {layer: Spent(3.0, 1)}
    both = [{layer: Spent(1.0, 1)}, {layer: Spent(1.0, 1), late: Spent(1.0, 2)}]
    assert merged(both, [1.0, 1.0])[late] == (0.5, 2)


def test_passes_on_a_machine_of_two_speeds_sum_to_the_cell():
    first, second = Key("a", "add", "forward"), Key("b", "add", "forward")
    speeds = (1.0, 2.0, 1.0, 1.0, 2.0)
    passes = [{first: Spent(0.3 * speed, 1), second: Spent(0.7 * speed, 1)} for speed in speeds]
    found = merged(passes, speeds)
    assert sum(spent.seconds for spent in found.values()) == pytest.approx(1.0)
    assert found[first].seconds == pytest.approx(0.3)
