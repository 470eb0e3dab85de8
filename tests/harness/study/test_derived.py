"""Contents of derived events, and counts of dilated sites."""

import numpy as np
import pytest

from harness.errors import BadInput
from harness.events import Event, open_events
from harness.events.statistics import count_neighbours
from harness.study.derived import embed, fill, overlay, write_once
from harness.study.dilation import dilated, dilation_table
from harness.study.views import crop


def event(voxels, energies=None, size=8):
    voxels = np.array(voxels, np.int32)
    energies = np.ones(len(voxels)) if energies is None else np.array(energies)
    labels = np.arange(len(voxels)) % 5
    return Event(voxels, energies.astype(np.float32), labels.astype(np.uint8), size, "synthetic")


def test_embedding_moves_an_event_and_keeps_its_neighbourhoods():
    small = open_events("sample", size=192)[0]
    large = embed(small, 512)
    assert large.size == 512
    assert (large.voxels - small.voxels == 160).all()
    assert count_neighbours(large.voxels, 512) == count_neighbours(small.voxels, 192)
    with pytest.raises(BadInput, match="does not fit"):
        embed(large, 192)


def test_overlaid_events_add_their_energies_and_keep_the_first_label():
    first, second = event([(1, 1, 1), (2, 2, 2)], [1, 2]), event([(5, 5, 5), (2, 2, 2)], [4, 8])
    both = overlay([first, second])
    rows = {
        tuple(voxel): (float(energy), int(label))
        for voxel, energy, label in zip(
            both.voxels.tolist(), both.energies, both.labels, strict=True
        )
    }
    assert rows == {(1, 1, 1): (1.0, 0), (2, 2, 2): (10.0, 1), (5, 5, 5): (4.0, 0)}


@pytest.mark.parametrize("occupancy", [0.001, 0.1, 0.7, 1.0])
def test_a_cube_is_filled_to_exactly_the_requested_fraction(occupancy):
    cubes = [crop(whole, 16, i) for i, whole in enumerate(open_events("sample", size=192)[:3])]
    filled = fill(cubes, occupancy)
    assert len(filled) == round(occupancy * 16**3)
    assert len(np.unique(filled.voxels, axis=0)) == len(filled)
    assert (filled.energies > 0).all()


def test_a_file_is_written_once_and_read_back(tmp_path):
    path = write_once(tmp_path / "new" / "events.h5", [event([(1, 2, 3)])], "synthetic")
    before = path.stat().st_mtime_ns
    write_once(path, iter(()), "not read")
    assert path.stat().st_mtime_ns == before
    assert open_events(path)[0].voxels.tolist() == [[1, 2, 3]]


def test_one_site_dilates_to_cubes():
    table = dilation_table(np.array([(4, 4, 4)], np.int32), 64, 3)
    assert table["ordinary"].tolist() == [1, 27, 125, 343]
    assert table["ordinary, one site"].tolist() == [1, 27, 125, 343]
    assert table["submanifold"].tolist() == [1, 1, 1, 1]


def test_dilation_ends_at_the_border_and_merges_neighbours():
    corner = np.array([(0, 0, 0)], np.int32)
    assert len(dilated(corner, 8)) == 8
    assert len(dilated(np.array([(2, 2), (2, 3)], np.int32), 8)) == 12
