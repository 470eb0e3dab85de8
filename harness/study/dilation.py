"""Growth of the number of active sites under ordinary convolutions (the dilation problem)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.events.event import voxel_keys, voxels_of_keys


def dilated(voxels: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """Return the distinct voxels of the image that a 3x3x3 convolution reaches."""
    dim = voxels.shape[1]
    offsets = np.array(list(product((-1, 0, 1), repeat=dim)), np.int32)
    reached = (voxels[:, None] + offsets).reshape(-1, dim)
    inside = ((reached >= 0) & (reached < size)).all(axis=1)
    return voxels_of_keys(np.unique(voxel_keys(reached[inside], size)), size, dim)


def dilation_table(voxels: NDArray[np.int32], size: int, layers: int) -> pd.DataFrame:
    """Count active sites after 0 to ``layers`` convolutions.

    Returns
    -------
    DataFrame
        Columns ``convolutions``, ``submanifold`` (constant), ``ordinary`` and ``ordinary, one
        site``.
    """
    centre = np.full((1, voxels.shape[1]), size // 2, np.int32)
    rows = []
    event, one = voxels, centre
    for convolutions in range(layers + 1):
        rows.append((convolutions, len(voxels), len(event), len(one)))
        event, one = dilated(event, size), dilated(one, size)
    columns = ["convolutions", "submanifold", "ordinary", "ordinary, one site"]
    return pd.DataFrame(rows, columns=columns)
