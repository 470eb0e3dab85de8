"""Folding of batch normalisation in one call of C++, instead of twenty small calls of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.cpu.instructions import FOLD, FOLD_GRADIENT, InstructionStream


def fold(
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    rows: int,
    eps: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the norm of a batch into scale and shift; see ``KernelSet``."""
    channels = len(weight)
    if sums.shape != (2, channels):
        raise ValueError(f"the norm has {channels} channels, the sums {tuple(sums.shape)}")
    sums = sums.contiguous()
    scale, shift, moments = torch.empty_like(weight), torch.empty_like(bias), torch.empty_like(sums)
    stream = InstructionStream()
    stream.write(
        FOLD, sums.data_ptr(), weight.data_ptr(), bias.data_ptr(), running_mean.data_ptr(),
        running_var.data_ptr(), rows, channels, eps, momentum, scale.data_ptr(),
        shift.data_ptr(), moments.data_ptr(), channels,
    )  # fmt: skip
    stream.run()
    return scale, shift, moments


def fold_gradient(
    to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the inputs of ``fold``; see ``KernelSet``."""
    channels, to_norm, to_sums = len(weight), to_norm.contiguous(), torch.empty_like(moments)
    to_weight, to_bias = torch.empty_like(weight), torch.empty_like(weight)
    stream = InstructionStream()
    stream.write(
        FOLD_GRADIENT, to_norm.data_ptr(), weight.data_ptr(), moments.data_ptr(), rows, channels,
        channels, to_sums.data_ptr(), False, to_weight.data_ptr(), to_bias.data_ptr(),
    )  # fmt: skip
    stream.run()
    return to_sums, to_weight, to_bias
