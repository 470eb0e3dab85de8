"""Reordering of rows by the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.cpu.instructions import INVERT, TAKE, InstructionStream


def inverted(order: Tensor) -> Tensor:
    """Return the inverse of a permutation; see ``KernelSet``."""
    stream, inverse = InstructionStream(), torch.empty_like(order)
    stream.write(INVERT, order.data_ptr(), len(order), inverse.data_ptr())
    stream.run()
    return inverse


def take(rows: Tensor, order: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows in another order, with a bias added to each; see ``KernelSet``."""
    stream = InstructionStream()
    number, channels = rows.shape
    if number != len(order):
        raise ValueError(f"there are {len(order)} sites, but {number} rows of features")
    out = torch.empty(rows.shape)
    stream.write(
        TAKE, stream.address(rows), order.data_ptr(), number, channels,
        0 if bias is None else stream.address(bias), out.data_ptr(),
    )  # fmt: skip
    stream.run()
    return out
