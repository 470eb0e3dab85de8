"""Arrays as the C++ functions take them: checked, and passed on by address."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.kernels import KernelMap


def checked(values: Tensor) -> Tensor:
    """Return contiguous float32 values on the CPU, or say what is wrong with them."""
    if values.dtype is not torch.float32 or not values.is_cpu:
        raise ValueError(f"the cpu kernels need float32 on the CPU, not {values.dtype}")
    return values.contiguous()


def block_rows(rows: int) -> int:
    """Return how many output rows make a block: few rows make small blocks, for all threads."""
    return 256 if rows >= 8192 else 128 if rows >= 2048 else 64


def pairs(kernel_map: KernelMap) -> tuple[int, int, int, int, int, int]:
    """Return the addresses and sizes of a map."""
    _, rows, taps = kernel_map
    if not kernel_map.tensors:
        return 0, 0, 0, rows, taps, block_rows(rows)
    rows_in, rows_out, spans = kernel_map.tensors
    return (
        rows_in.data_ptr(),
        rows_out.data_ptr(),
        spans.data_ptr(),
        rows,
        taps,
        block_rows(rows),
    )
