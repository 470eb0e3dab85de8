import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.events import CLASSES, Label
from harness.events.event import checked_event, voxel_keys, voxels_of_keys

VOXELS = np.array([[0, 1, 2], [3, 4, 5], [0, 0, 1]])
ENERGIES = np.array([0.1, 0.2, 0.3])
LABELS = np.array([0, 4, 2])


def build(voxels=VOXELS, energies=ENERGIES, labels=LABELS, size=8):
    return checked_event(voxels, energies, labels, size, "file.root, entry 7")


def test_voxels_come_back_sorted_with_their_energies_and_labels():
    event = build()
    assert event.voxels.tolist() == [[0, 0, 1], [0, 1, 2], [3, 4, 5]]
    assert event.energies.tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert event.labels.tolist() == [2, 0, 4]
    assert (event.voxels.dtype, event.energies.dtype, event.labels.dtype) == (
        np.int32,
        np.float32,
        np.uint8,
    )
    assert event.dim == 3
    assert event.occupancy == pytest.approx(3 / 512)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 5}, "outside the image of 5"),
        ({"voxels": VOXELS - 1}, "outside the image"),
        ({"voxels": VOXELS[[0, 1, 1]]}, "1 voxels appear more than once"),
        ({"energies": np.array([1.0, np.nan, 1.0])}, "voxel 1 has no finite energy"),
        ({"energies": np.array([1.0, 1.0, np.inf])}, "voxel 2 has no finite energy"),
        ({"energies": ENERGIES[:2]}, "2 energies do not match 3 voxels"),
        ({"labels": LABELS[:1]}, "1 labels do not match 3 voxels"),
        ({"labels": np.array([0, 1, 9])}, "label 9"),
        ({"labels": np.array([0, -1, 1])}, "label -1"),
        ({"voxels": VOXELS[:, :1]}, "shape"),
    ],
)
def test_bad_arrays_are_refused_with_file_and_event(change, words):
    with pytest.raises(BadInput, match=words) as refusal:
        build(**change)
    assert "file.root, entry 7" in str(refusal.value)


def test_an_event_may_be_empty():
    empty = build(VOXELS[:0], ENERGIES[:0], LABELS[:0])
    assert len(empty) == 0
    assert empty.occupancy == 0


@given(st.integers(1, 1000), st.sampled_from([2, 3]), st.data())
def test_keys_number_voxels_uniquely(size, dim, data):
    keys = np.array(data.draw(st.lists(st.integers(0, size**dim - 1))), np.int64)
    voxels = voxels_of_keys(keys, size, dim)
    assert ((voxels >= 0) & (voxels < size)).all()
    assert np.array_equal(voxel_keys(voxels, size), keys)


def test_the_study_has_five_classes_in_the_order_of_fivetypes():
    study = [label.name for label in Label if label < CLASSES]
    assert study == ["HIP", "MIP", "SHOWER", "DELTA", "MICHEL"]
