"""The symmetries of a square and a cube: axis permutations and flips."""

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray


def symmetries(dim: int) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """List the symmetries, the identity first: 48 of a cube, 8 of a square.

    Parameters
    ----------
    dim : int
        2 or 3.

    Returns
    -------
    list of (axes, flips)
        Axis ``i`` of the result is axis ``axes[i]`` of the input, mirrored where ``flips[i]``.
    """
    return list(product(permutations(range(dim)), product((False, True), repeat=dim)))


def transform(
    voxels: NDArray[np.int32], size: int, symmetry: tuple[tuple[int, ...], tuple[bool, ...]]
) -> NDArray[np.int32]:
    """Apply a symmetry to voxel coordinates, shape (N, dim), in an image of ``size`` per side."""
    axes, flips = symmetry
    moved = voxels[:, axes]
    return np.where(flips, size - 1 - moved, moved).astype(np.int32)
