"""Arrays as the C++ functions take them: checked, and passed on by address."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.kernels import KernelMap

_FLOAT = torch.float32


def checked(values: Tensor) -> Tensor:
    """Return contiguous float32 values on the CPU, or say what is wrong with them."""
    if values.dtype is not _FLOAT or not values.is_cpu:
        raise ValueError(f"the cpu kernels need float32 on the CPU, not {values.dtype}")
    return values.contiguous()


def block_rows(rows: int) -> int:
    """Return how many output rows make a block: few rows make small blocks, for all threads."""
    return 256 if rows >= 8192 else 128 if rows >= 2048 else 64


def empty_map(rows: int, taps: int, like: Tensor) -> KernelMap:
    """Make room for a map in one piece; memory that pairs do not reach is never touched.

    First the input row of each pair (int32), then where the pairs of each block and tap start
    (int32), then the output row of each pair within its block (uint8).
    """
    spans = -(-rows // block_rows(rows)) * (taps + 1)
    size = 5 * rows * taps + 4 * spans
    return KernelMap((like.new_empty(-(-size // 8), dtype=torch.int64),), rows, taps)


def pairs(kernel_map: KernelMap) -> tuple[int, int, int, int, int, int]:
    """Return the addresses and sizes of a map."""
    tensors, rows, taps = kernel_map
    block = block_rows(rows)
    if not tensors:
        return 0, 0, 0, rows, taps, block
    rows_in = tensors[0].data_ptr()
    spans = rows_in + 4 * rows * taps
    rows_out = spans + 4 * -(-rows // block) * (taps + 1)
    return rows_in, rows_out, spans, rows, taps, block


def count_pairs(kernel_map: KernelMap) -> int:
    """Return how many pairs of input and output rows a map lists."""
    tensors, rows, taps = kernel_map
    if not tensors:
        return rows
    blocks = -(-rows // block_rows(rows))
    spans = tensors[0].view(torch.int32)[rows * taps :][: blocks * (taps + 1)]
    return int(spans.view(blocks, taps + 1)[:, -1].sum())
