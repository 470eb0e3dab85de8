import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.events import Label
from harness.events.digitise import CUT_MEV, Deposits, digitise, split_at_voxel_faces

SIZE = 12


def deposits(start, end, energy, label=(), event=()) -> Deposits:
    count = len(energy)
    return Deposits(
        np.array(start, float).reshape(-1, 3),
        np.array(end, float).reshape(-1, 3),
        np.array(energy, float),
        np.array(event or [0] * count, np.int64),
        np.array(label or [0] * count, np.int64),
    )


def image(event) -> np.ndarray:
    dense = np.zeros((event.size,) * 3)
    dense[tuple(event.voxels.T)] = event.energies
    return dense


positions = st.floats(-2, SIZE + 2, allow_nan=False)


@given(hnp.arrays(float, (5, 3), elements=positions), hnp.arrays(float, (5, 3), elements=positions))
def test_the_pieces_of_a_step_fill_it_and_lie_in_their_voxels(start, end):
    step, fraction, voxel = split_at_voxel_faces(start, end)
    assert np.bincount(step, fraction, minlength=5) == pytest.approx(np.ones(5))
    assert (fraction > 0).all()
    position = np.cumsum(fraction) - fraction / 2
    position -= (np.cumsum(np.bincount(step, fraction)) - np.bincount(step, fraction))[step]
    middle = start[step] + position[:, None] * (end - start)[step]
    assert ((middle >= voxel - 1e-6) & (middle <= voxel + 1 + 1e-6)).all()


def test_a_step_along_an_axis_shares_its_energy_by_length():
    _, fraction, voxel = split_at_voxel_faces(
        np.array([[0.75, 2.5, 2.5]]), np.array([[3.75, 2.5, 2.5]])
    )
    assert voxel[:, 0].tolist() == [0, 1, 2, 3]
    assert fraction == pytest.approx([0.25 / 3, 1 / 3, 1 / 3, 0.75 / 3])


def test_a_point_is_blurred_over_its_27_voxels():
    point = deposits([5.5, 6.5, 7.5], [5.5, 6.5, 7.5], [100.0])
    (event,) = digitise(point, SIZE, ["one"])
    offsets = event.voxels - [5, 6, 7]
    assert len(event) == 27
    assert np.abs(offsets).max() == 1
    weights = np.exp(-1.5 * (offsets**2).sum(1))
    assert event.energies == pytest.approx(100 * weights / weights.sum(), rel=1e-6)
    assert (event.size, event.name) == (SIZE, "one")


def test_nothing_is_lost_inside_but_what_the_cut_takes():
    rng = np.random.default_rng(0)
    start = rng.uniform(1, SIZE - 1, (200, 3))
    end = np.clip(start + rng.normal(0, 1.5, (200, 3)), 1, SIZE - 1)
    made = deposits(start, end, rng.exponential(1, 200))
    (event,) = digitise(made, SIZE, ["all"], cut=0.0)
    assert event.energies.sum(dtype=float) == pytest.approx(made.energy.sum(), rel=1e-5)
    (kept,) = digitise(made, SIZE, ["kept"])
    assert kept.energies.min() >= np.float32(CUT_MEV)
    dense = image(event)
    dense[dense < CUT_MEV] = 0
    assert image(kept) == pytest.approx(dense)


def test_energy_outside_the_image_is_lost_and_wraps_nowhere():
    point = deposits([0.5, 0.5, SIZE - 0.5], [0.5, 0.5, SIZE - 0.5], [10.0])
    (event,) = digitise(point, SIZE, ["corner"])
    assert len(event) == 8
    assert (event.voxels[:, 2] >= SIZE - 2).all()
    assert (event.voxels[:, :2] <= 1).all()
    outside = deposits([-0.5, 3, 3], [-0.5, 3, 3], [10.0])
    assert len(digitise(outside, SIZE, ["outside"])[0]) == 0


def test_the_class_with_the_most_energy_takes_the_voxel():
    here = [[4.5, 4.5, 4.5]] * 3
    made = deposits(here, here, [1.0, 1.0, 1.5], [Label.MIP, Label.MIP, Label.DELTA])
    (event,) = digitise(made, SIZE, ["mixed"])
    assert set(event.labels.tolist()) == {Label.MIP}
    made = deposits(here, here, [1.0, 1.0, 2.5], [Label.MIP, Label.MIP, Label.DELTA])
    (event,) = digitise(made, SIZE, ["mixed"])
    assert set(event.labels.tolist()) == {Label.DELTA}
    made = deposits(here[:2], here[:2], [1.0, 1.0], [Label.MICHEL, Label.SHOWER])
    (event,) = digitise(made, SIZE, ["tie"])
    assert set(event.labels.tolist()) == {Label.SHOWER}


def test_events_do_not_touch_each_other():
    ends = [[2.5, 2.5, SIZE - 0.5], [2.5, 2.5, 0.5], [8.5, 2.5, 2.5]]
    both = digitise(deposits(ends, ends, [5.0] * 3, event=[0, 1, 3]), SIZE, list("abcd"))
    alone = [
        digitise(deposits(at, at, [5.0], event=[i]), SIZE, list("abcd"))[i]
        for at, i in zip(ends, (0, 1, 3), strict=True)
    ]
    for got, expected in zip([both[0], both[1], both[3]], alone, strict=True):
        assert np.array_equal(got.voxels, expected.voxels)
        assert np.array_equal(got.energies, expected.energies)
    assert len(both[2]) == 0


def test_no_deposit_makes_empty_events():
    none = deposits(np.zeros((0, 3)), np.zeros((0, 3)), [])
    assert [len(event) for event in digitise(none, SIZE, ["a", "b"])] == [0, 0]


def test_the_voxels_are_sorted():
    rng = np.random.default_rng(1)
    start = rng.uniform(0, SIZE, (30, 3))
    (event,) = digitise(deposits(start, start, np.ones(30)), SIZE, ["sorted"])
    order = np.lexsort(event.voxels.T[::-1])
    assert np.array_equal(order, np.arange(len(event)))
