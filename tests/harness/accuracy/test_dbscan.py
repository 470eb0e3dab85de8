"""DBSCAN on hand-made points, and point by point against its definition and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.accuracy.dbscan import NOISE, dbscan


def by_definition(points, reach, least):
    """Grow clusters one after another as the definition says; for small inputs."""
    near = np.linalg.norm(points[:, None] - points[None], axis=2) <= reach
    core = near.sum(axis=1) >= least
    labels = np.full(len(points), NOISE)
    cluster = 0
    for start in range(len(points)):
        if not core[start] or labels[start] != NOISE:
            continue
        waiting = [start]
        labels[start] = cluster
        while waiting:
            for other in np.flatnonzero(near[waiting.pop()]):
                if labels[other] == NOISE:
                    labels[other] = cluster
                    if core[other]:
                        waiting.append(other)
        cluster += 1
    return labels


def test_two_clusters_and_an_isolated_point():
    points = np.array(
        [[0, 0, 0], [0, 0, 1], [0, 1, 0], [9, 9, 9], [20, 0, 0], [20, 0, 1], [20, 1, 1]]
    )
    assert dbscan(points, 1.5, 3).tolist() == [0, 0, 0, NOISE, 1, 1, 1]


def test_points_with_too_few_neighbours_are_noise():
    assert dbscan(np.array([[0, 0], [0, 1]]), 1.0, 3).tolist() == [NOISE, NOISE]


def test_no_points_give_no_labels():
    assert len(dbscan(np.zeros((0, 3)), 1.0, 1)) == 0


points = st.lists(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=60, unique=True)


@given(points, st.sampled_from([1.0, 1.5, 2.83]), st.integers(1, 10))
def test_every_label_follows_the_definition(voxels, reach, least):
    voxels = np.array(voxels)
    assert dbscan(voxels, reach, least).tolist() == by_definition(voxels, reach, least).tolist()


def test_labels_equal_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    voxels = np.unique(np.random.default_rng(1).integers(0, 40, (6000, 3)), axis=0)
    expected = cluster.DBSCAN(eps=2.83, min_samples=12).fit(voxels).labels_
    assert len(set(expected.tolist())) > 5
    assert dbscan(voxels, 2.83, 12).tolist() == expected.tolist()
