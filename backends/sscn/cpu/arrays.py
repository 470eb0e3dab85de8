"""Arrays in the form that the C++ functions take, and the memory layout of gather maps."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.cpu.processor import block_rows
from backends.sscn.kernel_map import GatherMap

_FLOAT = torch.float32


def checked(values: Tensor) -> Tensor:
    """Return values as a contiguous array.

    Raises
    ------
    ValueError
        If they are not float32 on the CPU.
    """
    if values.dtype is not _FLOAT or not values.is_cpu:
        raise ValueError(f"the cpu kernels need float32 on the CPU, not {values.dtype}")
    return values.contiguous()


def empty_map(rows: int, taps: int, like: Tensor) -> GatherMap:
    """Return a gather map of one uninitialised array, large enough for all possible pairs.

    It has three parts: the input row of each pair (int32); where the pairs of each block and tap
    start (int32); and the output row of each pair within its block (uint8). Each block has room
    for all its rows and taps; pages of memory that no pair occupies are never touched.
    """
    spans = -(-rows // block_rows(rows)) * (taps + 1)
    size = 5 * rows * taps + 4 * spans
    return GatherMap((like.new_empty(-(-size // 8), dtype=torch.int64),), rows, taps)


def pairs(gather_map: GatherMap) -> tuple[int, int, int, int, int, int]:
    """Return the words of a gather map: its three addresses and its sizes."""
    tensors, rows, taps = gather_map
    block = block_rows(rows)
    if not tensors:
        return 0, 0, 0, rows, taps, block
    rows_in = tensors[0].data_ptr()
    spans = rows_in + 4 * rows * taps
    rows_out = spans + 4 * -(-rows // block) * (taps + 1)
    return rows_in, rows_out, spans, rows, taps, block
