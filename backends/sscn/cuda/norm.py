"""Folding of batch normalisation in one launch, instead of about twenty launches of torch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.launching import on_device_of_first


@triton.jit(do_not_specialize=["rows"])
def fold_channels(
    sums, weight, bias, running_mean, running_var, scale, shift, moments, rows,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute scale and shift of each channel from its sums, and update running statistics."""
    channel = tl.arange(0, BLOCK)
    in_range = channel < CHANNELS
    mean = tl.load(sums + channel, mask=in_range, other=0.0) / rows
    square = tl.load(sums + CHANNELS + channel, mask=in_range, other=0.0) / rows
    variance = tl.maximum(square - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    gain = tl.load(weight + channel, mask=in_range, other=0.0) * inverse
    offset = tl.load(bias + channel, mask=in_range, other=0.0) - mean * gain
    tl.store(scale + channel, gain.to(tl.float32), mask=in_range)
    tl.store(shift + channel, offset.to(tl.float32), mask=in_range)
    tl.store(moments + channel, mean, mask=in_range)
    tl.store(moments + CHANNELS + channel, inverse, mask=in_range)
    old = tl.load(running_mean + channel, mask=in_range, other=0.0)
    tl.store(running_mean + channel, (old + MOMENTUM * (mean - old)).to(tl.float32), mask=in_range)
    old = tl.load(running_var + channel, mask=in_range, other=0.0)
    unbiased = variance * rows / (rows - 1)
    tl.store(
        running_var + channel, (old + MOMENTUM * (unbiased - old)).to(tl.float32), mask=in_range
    )


@triton.jit(do_not_specialize=["rows"])
def fold_channels_gradient(
    to_norm, weight, moments, to_sums, to_weight, to_bias, rows,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Propagate gradients of scale and shift to the sums and to the weight of the norm."""
    channel = tl.arange(0, BLOCK)
    in_range = channel < CHANNELS
    mean = tl.load(moments + channel, mask=in_range, other=0.0)
    inverse = tl.load(moments + CHANNELS + channel, mask=in_range, other=0.0)
    by_scale = tl.load(to_norm + channel, mask=in_range, other=0.0)
    by_shift = tl.load(to_norm + CHANNELS + channel, mask=in_range, other=0.0)
    gain = tl.load(weight + channel, mask=in_range, other=0.0) * inverse
    by_weight = (by_scale - by_shift * mean) * inverse
    # The variance enters through inverse = (variance + eps)^(-1/2).
    by_square = by_weight * gain * inverse * (-0.5) / rows
    by_sum = -by_shift * gain / rows - 2.0 * mean * by_square
    tl.store(to_sums + channel, by_sum, mask=in_range)
    tl.store(to_sums + CHANNELS + channel, by_square, mask=in_range)
    tl.store(to_weight + channel, by_weight.to(tl.float32), mask=in_range)
    tl.store(to_bias + channel, by_shift.to(tl.float32), mask=in_range)


@on_device_of_first
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
    """Fold the statistics of a batch; see ``KernelSet``."""
    channels = len(weight)
    scale, shift = torch.empty_like(weight), torch.empty_like(bias)
    moments = torch.empty_like(sums)
    fold_channels[(1,)](
        sums.contiguous(), weight, bias, running_mean, running_var, scale, shift, moments, rows,
        EPS=eps, MOMENTUM=momentum, CHANNELS=channels, BLOCK=triton.next_power_of_2(channels),
        num_warps=1,
    )  # fmt: skip
    return scale, shift, moments


@on_device_of_first
def fold_gradient(
    to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate gradients through ``fold``; see ``KernelSet``."""
    channels = len(weight)
    to_sums = torch.empty_like(moments)
    to_weight, to_bias = torch.empty_like(weight), torch.empty_like(weight)
    fold_channels_gradient[(1,)](
        to_norm.contiguous(), weight, moments, to_sums, to_weight, to_bias, rows,
        CHANNELS=channels, BLOCK=triton.next_power_of_2(channels), num_warps=1,
    )  # fmt: skip
    return to_sums, to_weight, to_bias
