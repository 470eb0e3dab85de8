"""Block shapes of the kernels, chosen from the sizes of their arguments alone."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from backends.sscn.cuda.symbols import Size, cdiv, maximum, minimum

TILES = ((16384, 64), (0, 32))
"""(least rows of a map, rows per tile): with few rows, small tiles occupy more of the GPU."""

PROGRAMS = 528
"""Programs up to which the steps of a tile are split: four per multiprocessor of a large GPU."""

LEAST_STEPS = 5
"""Fewest steps of a program, unless its tile has fewer: adding the parts takes as long as some."""

PRODUCT_PROGRAMS = 1024
"""Desired number of programs of a weight gradient."""

ROWS_TOGETHER = 65536
"""Most rows of layers whose weight gradients share a launch, for which their gradients are kept."""

HAS_FP32_PRECISION = hasattr(torch.backends.cuda.matmul, "fp32_precision")
"""Whether torch has the newer interface to the precision of products, since version 2.9."""


class Blocks(NamedTuple):
    """Block shape of a convolution.

    Attributes
    ----------
    rows, columns, depth : int
        Output rows, output channels and input channels of one matrix product.
    warps : int
        Warps of a program.
    """

    rows: int
    columns: int
    depth: int
    warps: int


class ProductBlocks(NamedTuple):
    """Block shape of a weight gradient.

    Attributes
    ----------
    inputs, outputs : int
        Channels of a block.
    blocks : int
        Blocks that cover all channels.
    warps : int
        Warps of a program.
    """

    inputs: int
    outputs: int
    blocks: int
    warps: int


def tile_rows(rows: int | Size) -> int:
    """Return the number of output rows that one program computes."""
    return next(tile for least, tile in TILES if rows >= least)


def splits(blocks: Any, steps: Any) -> Any:
    """Return the number of programs of a block of sums.

    Parameters
    ----------
    blocks : int
        Number of tiles times that of blocks of columns.
    steps : int
        Most matrix products of a block that are added one after the other.
    """
    return maximum(minimum(PROGRAMS // blocks, steps // LEAST_STEPS), 1)


def runs_per_share(runs: Any, blocks: Any) -> Any:
    """Return the number of runs that a program of a weight gradient of so many blocks adds."""
    return cdiv(runs, minimum(runs, maximum(PRODUCT_PROGRAMS // blocks, 1)))


def workspace_size(blocks: Any, parts: Any, values: Any) -> Any:
    """Return the number of values of the parts of all blocks of sums; one part needs none."""
    return blocks * parts * values * minimum(parts - 1, 1)


def dot_precision(dtype: torch.dtype) -> str:
    """Return Triton's name of the arithmetic for rows of a type, by torch's TF32 setting.

    ``allow_tf32`` raises in a process that has set ``fp32_precision``, torch's newer interface.
    """
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    allowed = matmul.fp32_precision == "tf32" if HAS_FP32_PRECISION else matmul.allow_tf32
    return "tf32" if allowed else "ieee"


@functools.cache
def convolution_blocks(
    tile: int, sources: tuple[int, ...], outputs: int, dtype: torch.dtype, precision: str
) -> Blocks:
    """Choose the blocks of a convolution.

    Parameters
    ----------
    tile : int
        Output rows per program, as from ``tile_rows``.
    sources : tuple of int
        Input channels of each source; no matrix product includes channels of both.
    outputs : int
        Output channels.
    dtype : torch.dtype
        Of the stored rows.
    precision : str
        As from ``dot_precision``.
    """
    scalar = _on_scalar_units(dtype, precision)
    common = math.gcd(*sources)
    deepest = 64 if dtype.itemsize == 2 else 32
    depth = next((size for size in (64, 32, 16) if size <= deepest and common % size == 0), 16)
    columns = _columns(outputs, 64 if scalar else 128)
    return Blocks(tile, columns, depth, _warps(tile * columns, scalar))


@functools.cache
def product_blocks(inputs: int, outputs: int, dtype: torch.dtype, precision: str) -> ProductBlocks:
    """Choose the blocks of a weight gradient between two widths; see ``convolution_blocks``."""
    scalar = _on_scalar_units(dtype, precision)
    block_in, block_out = _columns(inputs, 64), _columns(outputs, 64)
    blocks = -(-inputs // block_in) * -(-outputs // block_out)
    return ProductBlocks(block_in, block_out, blocks, _warps(block_in * block_out, scalar))


def _on_scalar_units(dtype: torch.dtype, precision: str) -> bool:
    """Return whether products run as fused multiply-adds: matrix units have no IEEE float32."""
    return dtype == torch.float32 and precision == "ieee"


def _warps(values: int, scalar: bool) -> int:
    """Return the number of warps for a block of sums without spilling registers to memory."""
    return 8 if values >= (64 * 64 if scalar else 64 * 128) else 4


def _columns(channels: int, widest: int) -> int:
    """Return a block width, a power of two, with little padding; preferably a single block."""
    single = max(16, 1 << (channels - 1).bit_length())
    if single <= widest:
        return single
    sizes = [size for size in (128, 64, 32) if size <= widest]
    return min(sizes, key=lambda size: (-(-channels // size) * size, -size))
