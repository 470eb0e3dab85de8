import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.events import benchmark_batch, open_sample
from harness.events.event import Event
from harness.events.projection import PLANES, ProjectedSet, project
from tests.harness.events.conftest import make_event
from tests.harness.events.strategies import events


@given(events(), st.sampled_from(sorted(PLANES)))
def test_a_projection_sums_energies_and_takes_the_label_of_the_largest_deposit(event, plane):
    flat = project(event, plane)
    pixels: dict = {}
    for voxel, energy, label in zip(event.voxels, event.energies, event.labels, strict=True):
        pixels.setdefault(tuple(voxel[list(PLANES[plane])].tolist()), []).append((energy, label))
    assert [tuple(pixel) for pixel in flat.voxels.tolist()] == sorted(pixels)
    for pixel, energy, label in zip(flat.voxels.tolist(), flat.energies, flat.labels, strict=True):
        deposits = pixels[tuple(pixel)]
        assert energy == pytest.approx(sum(float(deposit) for deposit, _ in deposits))
        largest = max(deposit for deposit, _ in deposits)
        assert label == next(of for deposit, of in deposits if deposit == largest)
    assert (flat.dim, flat.size) == (2, event.size)


def test_the_planes_keep_their_axes_in_order():
    event = Event(
        np.array([[1, 2, 3]], np.int32), np.ones(1, np.float32), np.zeros(1, np.uint8), 8, "one"
    )
    kept = {plane: project(event, plane).voxels.tolist() for plane in PLANES}
    assert kept == {"xy": [[1, 2]], "yz": [[2, 3]], "zx": [[3, 1]]}


def test_a_projected_set_makes_2d_batches():
    flat = ProjectedSet(open_sample(192), "yz")
    batch, _ = benchmark_batch(flat, 4, seed=0)
    assert batch["sites"].shape[1] == 3
    assert batch["sites"].max() < 192
    assert len(flat) == len(open_sample(192))
    assert flat.sha256 != open_sample(192).sha256


def test_impossible_projections():
    with pytest.raises(BadInput, match="choose one of xy, yz, zx"):
        project(make_event(3), "xz")
    with pytest.raises(BadInput, match="choose one of xy, yz, zx"):
        ProjectedSet(open_sample(192), "xz")
    with pytest.raises(BadInput, match="only 3D events"):
        project(make_event(3, dim=2), "xy")
