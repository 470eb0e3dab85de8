"""The shape of the blocks that a kernel works in, chosen from sizes alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

SMALL_MAP = 16384
"""Below this many rows a tile has half the rows, so that more multiprocessors have one."""


class Blocks(NamedTuple):
    """Block shape of a convolution: rows are given by the map.

    Attributes
    ----------
    columns, depth : int
        Output and input channels that one matrix product covers.
    warps, stages : int
        Warps of a program, and products whose operands are in flight.
    """

    columns: int
    depth: int
    warps: int
    stages: int


def tile_rows(rows: int) -> int:
    """Return the output rows that one program computes."""
    return 32 if rows < SMALL_MAP else 64


def dot_precision(dtype: torch.dtype) -> str:
    """Return Triton's name of the arithmetic for rows of a type, by torch's own TF32 switch."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"


def convolution_blocks(sources: tuple[int, ...], out: int, item: int, precision: str) -> Blocks:
    """Choose the blocks of a convolution.

    Parameters
    ----------
    sources : tuple of int
        Input channels of each source; a matrix product never crosses from one to the other.
    out : int
        Output channels.
    item : int
        Bytes of a stored value.
    precision : str
        As from `dot_precision`.
    """
    fused = item == 4 and precision == "ieee"  # multiply-add units, not matrix units
    common = math.gcd(*sources)
    deepest = 64 if item == 2 else 32
    depth = next((size for size in (64, 32, 16) if size <= deepest and common % size == 0), 16)
    return Blocks(_columns(out, 64 if fused else 128), depth, 4, 3)


def _columns(channels: int, widest: int) -> int:
    """Return a power of two that pads the channels little; one that gathers once if it can."""
    single = max(16, 1 << (channels - 1).bit_length())
    if single <= widest:
        return single
    sizes = [size for size in (128, 64, 32) if size <= widest]
    return min(sizes, key=lambda size: (-(-channels // size) * size, -size))


class ProductBlocks(NamedTuple):
    """Block shape of a weight gradient.

    Attributes
    ----------
    inputs, outputs : int
        Channels of a block.
    rows : int
        Pairs that one matrix product sums over.
    blocks : int
        Blocks that cover all channels.
    """

    inputs: int
    outputs: int
    rows: int
    blocks: int


def product_blocks(inputs: int, outputs: int) -> ProductBlocks:
    """Choose the blocks of a weight gradient between two widths."""
    block_in, block_out = _columns(inputs, 64), _columns(outputs, 64)
    blocks = -(-inputs // block_in) * -(-outputs // block_out)
    return ProductBlocks(block_in, block_out, 32, blocks)
