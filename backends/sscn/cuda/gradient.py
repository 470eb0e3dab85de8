"""The weight gradient, in two stages of fixed order, and the gradient through statistics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.blocks import dot_precision, product_blocks
from backends.sscn.cuda.convolution import (
    STAGES,
    arithmetic,
    check,
    check_rows,
    gather,
    map_tensors,
    multiply,
)
from backends.sscn.cuda.launching import on_device_of_first
from backends.sscn.kernel_map import GatherMap

RUN = 512
"""Positions of a map per list of pairs; at most 2**16, as lists hold 16-bit positions."""

PAIRS = 32
"""Pairs over which one matrix product sums."""

PROGRAMS = 1024
"""Desired number of programs: a few per multiprocessor of a large GPU."""

ELEMENTS = 1024
"""Values per program of an elementwise kernel."""


@triton.jit(do_not_specialize=["rows"])
def list_pairs(table, pairs, counts, rows, RUN: tl.constexpr):
    """List the positions of one run at which one tap meets a site."""
    run = tl.program_id(0).to(tl.int64)
    tap = tl.program_id(1).to(tl.int64)
    local = tl.arange(0, RUN)
    position = run * RUN + local
    site = tl.load(table + tap * rows + position, mask=position < rows, other=-1)
    met = (site >= 0).to(tl.int32)
    entry = tap * tl.num_programs(0) + run
    tl.store(pairs + entry * RUN + tl.cumsum(met, 0) - 1, local.to(tl.int16), mask=met > 0)
    tl.store(counts + entry, tl.sum(met, 0))


@triton.jit(do_not_specialize=["rows", "runs", "share"])
def weight_gradient_share(
    source, scale, shift, grad, table, order, pairs, counts, partial, rows, runs, share,
    FIRST: tl.constexpr, CHANNELS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, RUN: tl.constexpr,
    NORM: tl.constexpr, SLOPE: tl.constexpr, IDENTITY: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the outer products of one tap over a share of the runs, for a block of channels."""
    tap = tl.program_id(1).to(tl.int64)
    blocks_in: tl.constexpr = (CHANNELS + BLOCK_I - 1) // BLOCK_I
    channel = (tl.program_id(2) % blocks_in) * BLOCK_I + tl.arange(0, BLOCK_I)
    column = (tl.program_id(2) // blocks_in) * BLOCK_O + tl.arange(0, BLOCK_O)
    first = tl.program_id(0) * share
    total = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for run in range(first, tl.minimum(first + share, runs)):
        start = tl.cast(run, tl.int64) * RUN
        if IDENTITY:
            count = tl.minimum(rows - start, RUN).to(tl.int32)
        else:
            count = tl.load(counts + tap * runs + run)
        for pair in range(0, count, BLOCK_R):
            place = pair + tl.arange(0, BLOCK_R)
            in_range = place < count
            if IDENTITY:
                row = start + place
                site = tl.where(in_range, row, -1)
            else:
                local = tl.load(pairs + (tap * runs + run) * RUN + place, mask=in_range, other=0)
                position = start + local
                row = tl.load(order + position, mask=in_range, other=0)
                site = tl.load(table + tap * rows + position, mask=in_range, other=-1)
            a = gather(
                source, scale + FIRST, shift + FIRST, site, channel, CHANNELS, BLOCK_I, NORM, SLOPE
            )
            valid = in_range[:, None] & (column < OUT)[None, :]
            b = tl.load(grad + row[:, None] * OUT + column[None, :], mask=valid, other=0.0)
            total = multiply(tl.trans(a), b, total, PRECISION, UPCAST)
    partial += (tl.program_id(0) * tl.num_programs(1) + tap) * (IN * OUT)
    where = (FIRST + channel)[:, None] * OUT + column[None, :]
    tl.store(partial + where, total, mask=(channel < CHANNELS)[:, None] & (column < OUT)[None, :])


@triton.jit(do_not_specialize=["size"])
def add_statistics_gradient(
    grad, out, grad_sums, total, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Add the gradient through the sum and the sum of squares to the gradient of the values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = place < size
    channel = place % CHANNELS
    direct = tl.load(grad + place, mask=in_range, other=0.0).to(tl.float32)
    value = tl.load(out + place, mask=in_range, other=0.0).to(tl.float32)
    to_sum = tl.load(grad_sums + channel, mask=in_range, other=0.0).to(tl.float32)
    to_squares = tl.load(grad_sums + CHANNELS + channel, mask=in_range, other=0.0).to(tl.float32)
    through = to_sum + 2.0 * value * to_squares
    tl.store(total + place, (direct + through).to(total.dtype.element_ty), mask=in_range)


@on_device_of_first
def weight_gradient(
    x: Tensor,
    skip: Tensor | None,
    grad: Tensor,
    gather_map: GatherMap,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float = 0.0,
) -> Tensor:
    """Return the gradient of the weights over the forward map, the same bits for the same input."""
    sources = [x] if skip is None else [x, skip]
    channels, outputs = sum(source.shape[1] for source in sources), grad.shape[1]
    rows, taps = gather_map.rows, gather_map.taps
    check(x, skip, scale, shift, channels)
    check_rows(grad, rows, outputs, x.dtype, "gradient")
    if rows == 0:
        return x.new_zeros((taps, channels, outputs))
    precision = dot_precision(x.dtype)
    grad = grad.contiguous()
    table, order, _, _ = map_tensors(gather_map, x)
    runs = triton.cdiv(rows, RUN)
    pairs = counts = x
    if gather_map.tensors:
        pairs = torch.empty((taps, runs, RUN), dtype=torch.int16, device=x.device)
        counts = torch.empty((taps, runs), dtype=torch.int32, device=x.device)
        list_pairs[(runs, taps)](table, pairs, counts, rows, RUN=RUN)
    shapes = [product_blocks(each.shape[1], outputs, x.dtype, precision) for each in sources]
    blocks = max(shape.blocks for shape in shapes)
    shares = min(runs, max(1, PROGRAMS // (taps * blocks)))
    share = triton.cdiv(runs, shares)
    shares = triton.cdiv(runs, share)
    partial = x.new_empty((shares, taps, channels, outputs), dtype=torch.float32)
    first = 0
    for source, shape in zip(sources, shapes, strict=True):
        width = source.shape[1]
        weight_gradient_share[(shares, taps, shape.blocks)](
            source.contiguous(), x if scale is None else scale.contiguous(),
            x if shift is None else shift.contiguous(), grad, table, order, pairs, counts,
            partial, rows, runs, share,
            FIRST=first, CHANNELS=width, IN=channels, OUT=outputs,
            BLOCK_I=shape.inputs, BLOCK_O=shape.outputs, BLOCK_R=PAIRS, RUN=RUN,
            NORM=scale is not None, SLOPE=slope, IDENTITY=not gather_map.tensors,
            **arithmetic(x, precision), num_warps=shape.warps, num_stages=STAGES,
        )  # fmt: skip
        first += width
    return partial.sum(0).to(x.dtype)


@on_device_of_first
def statistics_gradient(grad: Tensor, out: Tensor, grad_sums: Tensor) -> Tensor:
    """Return ``grad + grad_sums[0] + 2 * out * grad_sums[1]``."""
    check_rows(grad, len(out), out.shape[1], out.dtype, "gradient")
    total = torch.empty_like(out, memory_format=torch.contiguous_format)
    if out.numel():
        add_statistics_gradient[(triton.cdiv(out.numel(), ELEMENTS),)](
            grad.contiguous(), out.contiguous(), grad_sums.contiguous(), total, out.numel(),
            CHANNELS=out.shape[1], BLOCK=ELEMENTS,
        )  # fmt: skip
    return total
