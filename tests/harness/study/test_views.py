"""Crops, planes and merged classes, on events made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.events import Event
from harness.events.track_shower import track_or_shower
from harness.study.views import View, crop


def event(voxels, labels, size=64):
    voxels = np.array(voxels, np.int32)
    return Event(
        voxels, np.ones(len(voxels), np.float32), np.array(labels, np.uint8), size, "synthetic"
    )


voxels = st.lists(st.tuples(*[st.integers(0, 63)] * 3), min_size=1, max_size=40, unique=True)


@given(voxels, st.integers(1, 64), st.integers(0, 9))
def test_a_crop_holds_what_lies_in_one_cube_and_nothing_else(points, side, seed):
    whole = event(points, np.arange(len(points)) % 5)
    part = crop(whole, side, seed)
    assert part.size == side
    assert len(part) >= 1
    assert ((part.voxels >= 0) & (part.voxels < side)).all()
    # Some shift puts the part into the whole, labels included, and nothing else is in that cube.
    rows = {(tuple(voxel), int(label)) for voxel, label in zip(points, whole.labels, strict=True)}
    shifts = (np.array(points)[:, None] - part.voxels[None, 0]).reshape(-1, 3)
    assert any(
        {
            (tuple(voxel), int(label))
            for voxel, label in zip((part.voxels + shift).tolist(), part.labels, strict=True)
        }
        == {
            row
            for row in rows
            if all(0 <= v - s < side for v, s in zip(row[0], shift.tolist(), strict=True))
        }
        for shift in shifts
    )


def test_crops_are_reproducible():
    whole = event([(1, 2, 3), (60, 60, 60), (5, 5, 5)], [0, 1, 2])
    np.testing.assert_array_equal(crop(whole, 16, 3).voxels, crop(whole, 16, 3).voxels)


def test_an_empty_event_stays_empty():
    assert len(crop(event(np.zeros((0, 3)), []), 16, 0)) == 0


def test_tracks_and_showers():
    merged = track_or_shower(event([(i, 0, 0) for i in range(7)], [0, 1, 2, 3, 4, 5, 8]))
    assert merged.labels.tolist() == [0, 0, 1, 1, 1, 5, 8]


def test_a_view_of_the_sample_combines_plane_crop_and_classes():
    events = View("sample", 192, classes=2, dim=2, crop=48).open()
    first = events[0]
    assert (first.dim, first.size, len(events)) == (2, 48, 256)
    assert set(first.labels.tolist()) <= {0, 1}
    assert events.sha256 != View("sample", 192, dim=2, crop=48).open().sha256


@pytest.mark.parametrize("wrong", [{"classes": 3}, {"dim": 4}, {"crop": 200}])
def test_an_unsupported_view_is_refused(wrong):
    with pytest.raises(BadInput, match=r"choose|fit"):
        View("sample", 192, **wrong)


def test_a_folder_without_events_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no event files"):
        View(str(tmp_path), 192).open()
