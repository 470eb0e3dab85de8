from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given

from harness.errors import BadInput
from harness.events import CLASSES, Label, open_events, open_sample
from harness.events.info import REAL_EVENT
from harness.events.statistics import STRIDES, count_neighbours, count_sites, summarise
from tests.harness.events.conftest import make_event
from tests.harness.events.strategies import events


@given(events())
def test_neighbours_are_counted_as_a_dense_image_shows_them(event):
    dense = np.zeros((event.size + 2,) * 3, int)
    dense[tuple((event.voxels + 1).T)] = 1
    count = sum(
        (dense * np.roll(dense, offset, (0, 1, 2))).sum()
        for offset in product((-1, 0, 1), repeat=3)
    )
    assert count_neighbours(event.voxels, event.size) == count


@given(events(dim=2))
def test_sites_are_the_different_blocks(event):
    for stride in STRIDES:
        blocks = {tuple(voxel) for voxel in (event.voxels // stride).tolist()}
        assert count_sites(event.voxels, event.size, stride) == len(blocks)


def test_means_are_over_events_that_have_voxels():
    found = summarise([make_event(10), make_event(0), make_event(30)])
    assert (found.events, found.empty, found.voxels) == (2, 1, 20)
    assert found.occupancy == pytest.approx(20 / 32**3)
    assert sum(found.classes) == pytest.approx(1)


def test_events_that_cannot_be_summarised():
    with pytest.raises(BadInput, match="no voxel"):
        summarise([make_event(0)])
    with pytest.raises(BadInput, match="differs in size"):
        summarise([make_event(5), make_event(5, size=16)])


def test_the_reference_is_the_real_event(fixtures):
    with open_events(fixtures / "larcv2_pilarnet_event48.root") as event_set:
        measured = summarise([event_set[0]])
    assert measured.voxels == REAL_EVENT.voxels
    assert measured.sites == REAL_EVENT.sites
    assert measured.classes == pytest.approx(REAL_EVENT.classes)
    assert measured.occupancy == pytest.approx(REAL_EVENT.occupancy, rel=1e-3)
    assert measured.neighbours == pytest.approx(REAL_EVENT.neighbours, abs=0.05)
    assert measured.quantiles == pytest.approx(REAL_EVENT.quantiles, rel=5e-3)
    assert measured.energy == pytest.approx(REAL_EVENT.energy, abs=0.5)
    assert measured.voxels_per_mev == pytest.approx(REAL_EVENT.voxels_per_mev, abs=0.05)


# An independent run of the recipe: neighbours of 27, voxels per MeV, energy quantiles in MeV.
REFERENCE = {
    192: (16.2, 9.2, (0.0118, 0.0231, 0.0540, 0.1203, 0.378)),
    512: (15.5, 10.5, (0.0116, 0.0207, 0.048, 0.103, 0.328)),
    768: (15.4, 10.5, (0.0115, 0.0206, 0.048, 0.101, 0.325)),
}


def assert_realistic(measured) -> None:
    neighbours, voxels_per_mev, quantiles = REFERENCE[measured.size]
    assert measured.neighbours == pytest.approx(neighbours, abs=0.8)
    assert measured.voxels_per_mev == pytest.approx(voxels_per_mev, rel=0.10)
    assert measured.quantiles == pytest.approx(quantiles, rel=0.15)
    if measured.size == 192:
        assert 3e-4 < measured.occupancy < 8e-4


@pytest.mark.parametrize("size", REFERENCE)
def test_the_packed_sample_has_the_statistics_of_the_data_set(size):
    measured = summarise(open_sample(size)[:48])
    assert_realistic(measured)
    assert sum(measured.classes[:CLASSES]) == pytest.approx(1)
    assert min(measured.classes[label] for label in (Label.HIP, Label.MIP, Label.SHOWER)) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("size", REFERENCE)
def test_simulated_events_have_the_statistics_of_the_data_set(size):
    pytest.importorskip("calzone")
    from harness.events.simulate import Recipe, simulate

    assert_realistic(summarise(simulate(Recipe(size, seed=11), 48)))


def test_an_events_labels_make_its_shares():
    event = make_event(4)
    labels = np.array([0, 0, 4, 6], np.uint8)
    shares = summarise([replace(event, labels=labels)]).classes
    assert shares == pytest.approx([0.5, 0, 0, 0, 0.25, 0, 0.25, 0, 0])
