"""DBSCAN clustering of voxels with SciPy.

*Core* points, which have enough neighbours, are clustered by the connected components of the graph
of neighbouring core points; every other point gets the cluster of a neighbouring core point. The
labels are identical to those of scikit-learn's ``DBSCAN``, which would be a dependency for this
function alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

NOISE = -1


def dbscan(points: NDArray[np.number[Any]], reach: float, least: int) -> NDArray[np.int64]:
    """Cluster points by density (Ester et al., KDD 1996).

    Parameters
    ----------
    points : ndarray, shape (N, dim)
        Coordinates.
    reach : float
        Largest distance of neighbours, in the unit of the coordinates.
    least : int
        Least number of points within reach of a core point, itself included.

    Returns
    -------
    ndarray of int64, shape (N,)
        Number of each point's cluster, in the order of their first core points; ``NOISE`` for
        points without a neighbouring core point. A point that neighbours core points of several
        clusters is in the first of them.
    """
    count = len(points)
    labels = np.full(count, NOISE, np.int64)
    if not count:
        return labels
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray")
    core = 1 + np.bincount(pairs.ravel(), minlength=count) >= least
    of_core = core[pairs]
    first, second = pairs[of_core.all(axis=1)].T
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    components = connected_components(graph, directed=False)[1]
    rows = np.flatnonzero(core)
    _, starts, numbers = np.unique(components[rows], return_index=True, return_inverse=True)
    labels[rows] = np.argsort(np.argsort(starts))[numbers]

    mixed = pairs[of_core[:, 0] != of_core[:, 1]]
    inner = np.where(core[mixed[:, 0]], mixed[:, 0], mixed[:, 1])
    border = mixed.sum(axis=1) - inner
    nearest = np.full(count, count, np.int64)
    np.minimum.at(nearest, border, labels[inner])
    reached = nearest < count
    labels[reached] = nearest[reached]
    return labels
