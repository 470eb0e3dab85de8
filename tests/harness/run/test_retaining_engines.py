"""Engines of a third party that retain more from call to call than they may."""

import pytest
import torch

from harness.run.job import Job
from harness.run.sampling import StopRule
from harness.run.worker import measure_cell
from harness.spec.cell import Cell

SMALL = {"filters": 2, "depth": 2, "reps": 1, "classes": 5}

MAPS = {
    "volume": lambda sites, size: size,
    "number": lambda sites, size: len(sites),
    "address": lambda sites, size: sites.data_ptr(),
}
"""Keys under which an engine may retain the maps of its sites."""


@pytest.fixture(autouse=True)
def _keep_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return tmp_path_factory.mktemp("references")


def measured(name, phase, state, references, dim=2):
    values = Cell("s", name, 192, 1, phase, state).to_json()
    cell = Cell.from_json(values | {"model": SMALL, "dim": dim})
    rule = StopRule(least=3, most=3, budget=1.0)
    return measure_cell(Job(cell, rule=rule, warm_up=0.1, references=str(references)))


def retain_maps(module, key):
    whole, maps = module.Backend.tensor, {}

    def tensor(self, sites, features, spatial_size, batch_size):
        found = whole(self, sites, features, spatial_size, batch_size)
        kept = maps.setdefault(key(sites, spatial_size), found.maps)
        return module.Tensor(features, kept, 0)

    module.Backend.tensor = tensor


def retain_results(module):
    whole, results = module.Backend.features, {}

    def features(self, x):
        out = whole(self, x)
        kept = results.setdefault(self.address, out.detach().clone())
        return kept + (out - out.detach())

    make, put = module.Backend.tensor, module.Backend.with_features

    def tensor(self, sites, values, *rest):
        self.address = values.data_ptr()
        return make(self, sites, values, *rest)

    def with_features(self, x, values):
        self.address = values.data_ptr()
        return put(self, x, values)

    module.Backend.features = features
    module.Backend.tensor, module.Backend.with_features = tensor, with_features


def assert_refused(found, what):
    assert found["outcome"] == "wrong"
    assert "the first check passed, the last one" in found["reason"]
    assert f"with other {what}, failed" in found["reason"]
    assert "host_seconds" not in found
    assert "device_seconds" not in found


@pytest.mark.parametrize("phase", ["forward", "step"])
@pytest.mark.parametrize("state", ["cold", "warm"])
def test_the_template_itself_is_right(phase, state, install, references):
    install("plain")
    found = measured("plain", phase, state, references)
    assert (found["outcome"], found["reason"]) == ("ok", "")
    assert len(found["host_seconds"]) >= 3


@pytest.mark.parametrize("phase", ["forward", "step"])
@pytest.mark.parametrize("key", MAPS)
def test_maps_that_belong_to_other_sites_are_wrong(key, phase, install, references):
    retain_maps(install(key), MAPS[key])
    assert_refused(measured(key, phase, "cold", references), "sites")


@pytest.mark.parametrize("phase", ["forward", "step"])
@pytest.mark.parametrize(("state", "what"), [("cold", "sites"), ("warm", "features")])
def test_results_that_belong_to_other_features_are_wrong(state, what, phase, install, references):
    retain_results(install("results"))
    assert_refused(measured("results", phase, state, references), what)


def test_maps_that_belong_to_other_sites_are_wrong_in_3d(install, references):
    retain_maps(install("volume"), MAPS["volume"])
    assert_refused(measured("volume", "forward", "cold", references, dim=3), "sites")


def test_no_two_cold_calls_have_the_same_sites(install, references):
    module, seen = install("listening"), []
    whole = module.Backend.tensor

    def tensor(self, sites, *rest):
        seen.append(sites.numpy().tobytes())
        return whole(self, sites, *rest)

    module.Backend.tensor = tensor
    found = measured("listening", "forward", "cold", references)
    assert found["outcome"] == "ok"
    assert len(set(seen)) == len(seen) > len(found["host_seconds"])
