"""Kernel maps, and the Morton order of sites that they refer to.

Notes
-----
Conventions of all kernel sets:

* The rows of a level are its sites in ascending order of their Morton keys (see ``morton``).
* A kernel has K taps, numbered as in torch's weights: the last axis varies fastest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GatherMap(NamedTuple):
    """For each output row and each tap of a kernel, the input row that the tap reads.

    Attributes
    ----------
    tensors : tuple of Tensor
        The map in the format of the kernel set that built it. ``reference``: a table (rows, taps)
        int32 of input rows, -1 where the tap meets no site. ``cpu``: lists of (input row, output
        row) pairs per block of output rows and tap. ``cuda``: the table with its rows grouped by
        the taps that they have, and the list of taps of each tile of rows.
        An empty tuple is the identity with one tap, which linear layers use.
    rows : int
        Number of output rows.
    taps : int
        K.
    """

    tensors: tuple[Tensor, ...]
    rows: int
    taps: int


class KernelMap(NamedTuple):
    """The map of a convolution and the map of its input gradient.

    Attributes
    ----------
    forward : GatherMap
        The input rows that each output row reads.
    backward : GatherMap
        The output rows that each input row contributes to.
    mirrored : bool
        True if tap k of ``forward`` is tap K - 1 - k of ``backward`` (odd kernels), false if it is
        tap k (kernel 2). A submanifold convolution has the same map in both directions.
    """

    forward: GatherMap
    backward: GatherMap
    mirrored: bool

    def check(self, rows: int, taps: int) -> None:
        """Check the number of input rows and of taps against those of the map.

        Raises
        ------
        ValueError
            If they differ.
        """
        if rows != self.backward.rows:
            raise ValueError(
                f"the kernel map takes {self.backward.rows} rows, the input has {rows}"
            )
        if taps != self.forward.taps:
            raise ValueError(f"the weights have {taps} taps, the kernel map {self.forward.taps}")

    def transposed(self) -> KernelMap:
        """Return the map of the inverse convolution: both directions exchanged."""
        return KernelMap(self.backward, self.forward, self.mirrored)


def identity(rows: int) -> KernelMap:
    """Return the map of a linear layer: each row reads itself."""
    same = GatherMap((), rows, 1)
    return KernelMap(same, same, False)


def axis_bits(spatial_size: int) -> int:
    """Return the number of bits of a coordinate below ``spatial_size``."""
    return max(spatial_size - 1, 0).bit_length()


def morton(sites: Tensor, bits: int) -> Tensor:
    """Return the Morton key of each site: the interleaved bits of its coordinates.

    Sites that are close in space mostly have close keys, so that a convolution gathers from rows
    that are close in memory.

    Parameters
    ----------
    sites : Tensor
        (N, 1 + dim) integers, the batch index first.
    bits : int
        Bits per axis; a level with half the spatial size has one bit less.

    Returns
    -------
    Tensor
        (N,) int64: the batch index above the interleaved bits. The lowest ``dim`` bits are the tap
        (last axis fastest) through which the parent on the next coarser level reads the site, and
        ``key >> dim`` is the key of that parent.
    """
    batch, *axes = sites.long().unbind(1)
    key = batch << (bits * len(axes))
    for bit in range(bits):
        for position, axis in enumerate(reversed(axes)):
            key = key | (((axis >> bit) & 1) << (bit * len(axes) + position))
    return key


def demorton(keys: Tensor, bits: int, dim: int) -> Tensor:
    """Return the sites of Morton keys, (N, 1 + dim) int64: the inverse of ``morton``."""
    columns = [keys >> (bits * dim)]
    for position in reversed(range(dim)):
        axis = torch.zeros_like(keys)
        for bit in range(bits):
            axis = axis | (((keys >> (bit * dim + position)) & 1) << bit)
        columns.append(axis)
    return torch.stack(columns, 1)
