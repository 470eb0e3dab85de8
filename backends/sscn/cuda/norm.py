"""Folding of batch normalisation, which also adds the sums of all tiles.

A kernel that computes sums may fold them itself, in its last program; otherwise one launch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.launching import launch, on_device_of_first
from backends.sscn.cuda.symbols import cdiv
from backends.sscn.deferred_layer import BatchNorm, Folding

ROUNDS = 5
"""Logarithm of the number of parts of sums that a program adds at the same time."""

GROUP = 64
"""Parts of very many that are added by a launch of their own."""

MOST_PARTS = 1024
"""Parts of sums up to which they are added by the kernel that uses the sums."""

CHANNELS = 16
"""Channels per program."""


@triton.jit
def _halved(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add each two neighbouring rows."""
    pairs = tl.permute(tl.reshape(values, (ROWS // 2, 2, COLUMNS)), (0, 2, 1))
    even, odd = tl.split(pairs)
    return even + odd


@triton.jit
def add_parts(
    sums, parts, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr
):  # fmt: skip
    """Add the parts (parts, 2, WIDTH) of two sums, of BLOCK channels from ``first`` on.

    The order is fixed, and the same in every kernel: no reduction whose order depends on how a
    kernel distributes values over its threads. Channels outside of the sums have zeros.
    """
    AT_ONCE: tl.constexpr = 1 << ROUNDS
    both = tl.arange(0, 2 * BLOCK)
    channel = first + both % BLOCK
    in_range = (channel >= 0) & (channel < WIDTH)
    column = both // BLOCK * WIDTH + channel
    total = tl.zeros((AT_ONCE, 2 * BLOCK), dtype=tl.float64)
    for begin in range(0, parts, AT_ONCE):
        part = begin + tl.arange(0, AT_ONCE)
        valid = (part < parts)[:, None] & in_range[None, :]
        where = part[:, None] * (2 * WIDTH) + column[None, :]
        # Another program of the same launch may have written the parts.
        total += tl.load(sums + where, mask=valid, other=0.0, cache_modifier=".cg")
    for step in tl.static_range(ROUNDS):
        total = _halved(total, AT_ONCE >> step, 2 * BLOCK)
    return tl.split(tl.permute(tl.reshape(total, (2, BLOCK)), (1, 0)))


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


@triton.jit
def fold_block(
    sums, second_sums, weight, bias, running_mean, running_var, scale, shift, moments,
    parts, second_parts, rows, first, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Compute scale and shift of BLOCK channels from their sums, and update running statistics.

    The channels are those of one source, or of two whose sums are apart.
    """
    channels: tl.constexpr = FIRST + SECOND
    channel = first + tl.arange(0, BLOCK)
    in_range = channel < channels
    mean, square = add_parts(sums, parts, first, FIRST, BLOCK, ROUNDS)
    if SECOND > 0:
        other_mean, other_square = add_parts(
            second_sums, second_parts, first - FIRST, SECOND, BLOCK, ROUNDS
        )
        mean += other_mean
        square += other_square
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


@triton.jit(do_not_specialize=["parts", "second_parts", "rows"])
def fold_channels(
    sums, second_sums, weight, bias, running_mean, running_var, scale, shift, moments,
    parts, second_parts, rows, EPS: tl.constexpr, MOMENTUM: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Fold BLOCK channels."""
    fold_block(
        sums, second_sums, weight, bias, running_mean, running_var, scale, shift, moments,
        parts, second_parts, rows, tl.program_id(0) * BLOCK, EPS, MOMENTUM, FIRST, SECOND, BLOCK,
        ROUNDS,
    )  # fmt: skip


@triton.jit
def fold_block_gradient(
    to_norm, weight, moments, to_sums, to_weight, to_bias, parts, rows, first,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Propagate gradients of scale and shift to the sums and to the weight of the norm."""
    channel = first + tl.arange(0, BLOCK)
    in_range = channel < CHANNELS
    mean = tl.load(moments + channel, mask=in_range, other=0.0)
    inverse = tl.load(moments + CHANNELS + channel, mask=in_range, other=0.0)
    by_scale, by_shift = add_parts(to_norm, parts, first, CHANNELS, BLOCK, ROUNDS)
    gain = tl.load(weight + channel, mask=in_range, other=0.0) * inverse
    by_weight = (by_scale - by_shift * mean) * inverse
    # The variance enters through inverse = (variance + eps)^(-1/2).
    by_square = by_weight * gain * inverse * (-0.5) / rows
    by_sum = -by_shift * gain / rows - 2.0 * mean * by_square
    tl.store(to_sums + channel, by_sum, mask=in_range)
    tl.store(to_sums + CHANNELS + channel, by_square, mask=in_range)
    tl.store(to_weight + channel, by_weight.to(tl.float32), mask=in_range)
    tl.store(to_bias + channel, by_shift.to(tl.float32), mask=in_range)


@triton.jit(do_not_specialize=["parts", "rows"])
def fold_channels_gradient(
    to_norm, weight, moments, to_sums, to_weight, to_bias, parts, rows,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Propagate the gradients of BLOCK channels."""
    fold_block_gradient(
        to_norm, weight, moments, to_sums, to_weight, to_bias, parts, rows,
        tl.program_id(0) * BLOCK, CHANNELS, BLOCK, ROUNDS,
    )  # fmt: skip


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
    scale, shift, moments = _folded(sums, weight)
    launch(
        fold_channels, (cdiv(channels, CHANNELS),),
        sums, second, weight, bias, running_mean, running_var, scale, shift, moments,
        sums.shape[0], second.shape[0], rows, EPS=eps, MOMENTUM=momentum, FIRST=first_width,
        SECOND=channels - first_width, BLOCK=CHANNELS, ROUNDS=ROUNDS,
    )  # fmt: skip
    return scale, shift, moments


@on_device_of_first
def fold_gradient(
    to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate gradients through ``fold``; ``to_norm`` may be in parts (parts, 2, C)."""
    channels = len(weight)
    to_norm = _few_parts(to_norm)
    to_sums, to_weight, to_bias = norm_gradients(to_norm, weight)
    launch(
        fold_channels_gradient, (cdiv(channels, CHANNELS),),
        to_norm, weight, moments, to_sums, to_weight, to_bias, to_norm.shape[0], rows,
        CHANNELS=channels, BLOCK=CHANNELS, ROUNDS=ROUNDS,
    )  # fmt: skip
    return to_sums, to_weight, to_bias


class FoldInLaunch(NamedTuple):
    """What a convolution needs to fold a norm: the tensors and constants of its kernel."""

    tensors: tuple[Tensor, ...]
    constants: dict[str, Any]


NO_FOLD: dict[str, Any] = {
    "FOLD_FIRST": 0, "FOLD_SECOND": 0, "EPS": 0.0, "MOMENTUM": 0.0, "BLOCK_C": CHANNELS,
    "ROUNDS": ROUNDS,
}  # fmt: skip
"""The constants of a convolution that folds no norm."""


class Following(NamedTuple):
    """The norm of a later layer, all of whose sums are known after a convolution.

    Attributes
    ----------
    norm : BatchNorm
    sums : sequence of Tensor or None
        Those of its sources, in parts; None for those of the convolution itself.
    """

    norm: BatchNorm
    sums: Sequence[Tensor | None]

    def in_a_launch(self, own: Tensor) -> FoldInLaunch | None:
        """Return what a convolution needs to fold the norm.

        None if the sums have too many parts for its last program, or different numbers of parts.
        """
        norm = self.norm
        parts = own.shape[0]
        sums = [own if each is None else each for each in self.sums]
        if parts > MOST_PARTS or any(each.dim() != 3 or each.shape[0] != parts for each in sums):
            return None
        folding = Folding(*_folded(own, norm.weight))
        norm.set_folding(folding)
        first, second = sums[0], sums[-1]
        width = first.shape[2]
        constants = NO_FOLD | {
            "FOLD_FIRST": width, "FOLD_SECOND": len(norm.weight) - width, "EPS": norm.eps,
            "MOMENTUM": norm.momentum,
        }  # fmt: skip
        return FoldInLaunch(
            (first, second, norm.weight, norm.bias, *norm.running, *folding), constants
        )

    def fold(self, own: Tensor) -> None:
        """Fold the norm in a launch of its own."""
        fold_norm(self.norm, [own if each is None else each for each in self.sums])


def fold_norm(norm: BatchNorm, sums: Sequence[Tensor]) -> Folding:
    """Fold a norm from the sums of its sources, which may be in parts."""
    with torch.no_grad():
        folded = fold(
            sums[0], norm.weight, norm.bias, *norm.running, norm.rows, norm.eps, norm.momentum,
            *sums[1:],
        )  # fmt: skip
    folding = Folding(*folded)
    norm.set_folding(folding)
    return folding


def norm_gradients(to_norm: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return arrays for the gradients of the sums, the weight and the bias of a norm."""
    channels = len(weight)
    to_weight, to_bias = (to_norm.new_empty((channels,), dtype=weight.dtype) for _ in range(2))
    return to_norm.new_empty((2, channels)), to_weight, to_bias


def _folded(sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return arrays for scale, shift and moments of a norm."""
    channels = len(weight)
    scale, shift = (sums.new_empty((channels,), dtype=weight.dtype) for _ in range(2))
    return scale, shift, sums.new_empty((2, channels))


def _few_parts(sums: Tensor) -> Tensor:
    """Return sums in parts (parts, 2, C); very many parts are added by one more launch."""
    if sums.dim() == 2:
        sums = sums[None]
    elif sums.shape[0] > MOST_PARTS:
        parts, _, channels = sums.shape
        groups, width = cdiv(parts, GROUP), 2 * channels
        total = sums.new_empty((groups, 2, channels))
        launch(
            add_groups, (groups, cdiv(width, CHANNELS)), sums.contiguous(), total, parts,
            WIDTH=width, BLOCK=CHANNELS, GROUP=GROUP,
        )  # fmt: skip
        return total
    return sums.contiguous()
