"""DBSCAN clusters of voxels, by SciPy's neighbour tree and connected components.

DBSCAN needs no library of its own: points with enough neighbours (*core* points) are clustered by
the connected components of the graph that joins neighbouring core points, and the other points
take the cluster of a core point that they neighbour. Both are one call to SciPy, which the
project needs anyway; the labels are those of scikit-learn's ``DBSCAN``, point by point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

NOISE = -1


def dbscan(points: NDArray, reach: float, least: int) -> NDArray[np.int64]:
    """Cluster points by density (Ester et al., KDD 1996).

    Parameters
    ----------
    points : ndarray, shape (N, dim)
    reach : float
        Points at most this far apart are neighbours.
    least : int
        A point with this many points within reach, itself included, is a core point.

    Returns
    -------
    ndarray of int64, shape (N,)
        Clusters in the order of their first core points; `NOISE` for points that neighbour no
        core point. Where a point neighbours core points of several clusters, the first takes it.
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
