"""Folding of batch normalisation in one launch, which also adds the sums of all tiles."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.launching import launch, on_device_of_first
from backends.sscn.cuda.symbols import cdiv

PARTS = 64
"""Parts of sums that a program adds at the same time."""

MOST_PARTS = 1024
"""Parts of sums up to which they are added by the kernel that uses the sums."""

CHANNELS = 16
"""Channels per program."""


@triton.jit
def add_parts(
    sums, parts, channel, in_range,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Add the parts (parts, 2, WIDTH) of sums in a fixed order, for some of 2 * WIDTH columns."""
    total = tl.zeros((PARTS, BLOCK), dtype=tl.float64)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        valid = (part < parts)[:, None] & in_range[None, :]
        where = part[:, None] * (2 * WIDTH) + channel[None, :]
        total += tl.load(sums + where, mask=valid, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["parts"])
def add_groups(sums, total, parts, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Add each group of parts (parts, WIDTH) of sums."""
    group = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_range = column < WIDTH
    part = group * GROUP + tl.arange(0, GROUP)
    valid = (part < parts)[:, None] & in_range[None, :]
    each = tl.load(sums + part[:, None] * WIDTH + column[None, :], mask=valid, other=0.0)
    tl.store(total + group * WIDTH + column, tl.sum(each, 0), mask=in_range)


@triton.jit(do_not_specialize=["parts", "second_parts", "rows"])
def fold_channels(
    sums, second_sums, weight, bias, running_mean, running_var, scale, shift, moments,
    parts, second_parts, rows, EPS: tl.constexpr, MOMENTUM: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Compute scale and shift of each channel from its sums, and update running statistics.

    The channels are those of one source, or of two whose sums are apart.
    """
    channels: tl.constexpr = FIRST + SECOND
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_range = channel < channels
    of_first = channel < FIRST
    mean = add_parts(sums, parts, channel, of_first, FIRST, BLOCK, PARTS)
    square = add_parts(sums + FIRST, parts, channel, of_first, FIRST, BLOCK, PARTS)
    if SECOND > 0:
        other = channel - FIRST
        of_second = in_range & (channel >= FIRST)
        mean += add_parts(second_sums, second_parts, other, of_second, SECOND, BLOCK, PARTS)
        square += add_parts(
            second_sums + SECOND, second_parts, other, of_second, SECOND, BLOCK, PARTS
        )
    mean /= rows
    variance = tl.maximum(square / rows - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    gain = tl.load(weight + channel, mask=in_range, other=0.0) * inverse
    offset = tl.load(bias + channel, mask=in_range, other=0.0) - mean * gain
    tl.store(scale + channel, gain.to(tl.float32), mask=in_range)
    tl.store(shift + channel, offset.to(tl.float32), mask=in_range)
    tl.store(moments + channel, mean, mask=in_range)
    tl.store(moments + channels + channel, inverse, mask=in_range)
    old = tl.load(running_mean + channel, mask=in_range, other=0.0)
    tl.store(running_mean + channel, (old + MOMENTUM * (mean - old)).to(tl.float32), mask=in_range)
    old = tl.load(running_var + channel, mask=in_range, other=0.0)
    unbiased = variance * rows / (rows - 1)
    tl.store(
        running_var + channel, (old + MOMENTUM * (unbiased - old)).to(tl.float32), mask=in_range
    )


@triton.jit(do_not_specialize=["parts", "rows"])
def fold_channels_gradient(
    to_norm, weight, moments, to_sums, to_weight, to_bias, parts, rows,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Propagate gradients of scale and shift to the sums and to the weight of the norm."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_range = channel < CHANNELS
    mean = tl.load(moments + channel, mask=in_range, other=0.0)
    inverse = tl.load(moments + CHANNELS + channel, mask=in_range, other=0.0)
    by_scale = add_parts(to_norm, parts, channel, in_range, CHANNELS, BLOCK, PARTS)
    by_shift = add_parts(to_norm + CHANNELS, parts, channel, in_range, CHANNELS, BLOCK, PARTS)
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
    second_sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the statistics of a batch; see ``KernelSet``.

    ``sums`` may be in parts (parts, 2, C), and ``second_sums`` are those of further channels.
    """
    channels = len(weight)
    sums = _few_parts(sums)
    second = sums if second_sums is None else _few_parts(second_sums)
    first_width = sums.shape[2]
    scale, shift = (sums.new_empty((channels,), dtype=weight.dtype) for _ in range(2))
    moments = sums.new_empty((2, channels))
    launch(
        fold_channels, (cdiv(channels, CHANNELS),),
        sums, second, weight, bias, running_mean, running_var, scale, shift, moments,
        sums.shape[0], second.shape[0], rows, EPS=eps, MOMENTUM=momentum, FIRST=first_width,
        SECOND=channels - first_width, BLOCK=CHANNELS, PARTS=PARTS,
    )  # fmt: skip
    return scale, shift, moments


@on_device_of_first
def fold_gradient(
    to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate gradients through ``fold``; ``to_norm`` may be in parts (parts, 2, C)."""
    channels = len(weight)
    to_norm = _few_parts(to_norm)
    to_sums = to_norm.new_empty((2, channels))
    to_weight, to_bias = (to_norm.new_empty((channels,), dtype=weight.dtype) for _ in range(2))
    launch(
        fold_channels_gradient, (cdiv(channels, CHANNELS),),
        to_norm, weight, moments, to_sums, to_weight, to_bias, to_norm.shape[0], rows,
        CHANNELS=channels, BLOCK=CHANNELS, PARTS=PARTS,
    )  # fmt: skip
    return to_sums, to_weight, to_bias


def _few_parts(sums: Tensor) -> Tensor:
    """Return sums in parts (parts, 2, C); very many parts are added by one more launch."""
    if sums.dim() == 2:
        sums = sums[None]
    elif sums.shape[0] > MOST_PARTS:
        parts, _, channels = sums.shape
        groups, width = cdiv(parts, PARTS), 2 * channels
        total = sums.new_empty((groups, 2, channels))
        launch(
            add_groups, (groups, cdiv(width, CHANNELS)), sums.contiguous(), total, parts,
            WIDTH=width, BLOCK=CHANNELS, GROUP=PARTS,
        )  # fmt: skip
        return total
    return sums.contiguous()
