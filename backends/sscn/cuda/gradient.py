"""The weight gradient, added in fixed order, and the gradient through statistics."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from backends.sscn.cuda.blocks import dot_precision, product_blocks, runs_per_share, workspace_size
from backends.sscn.cuda.convolution import (
    STAGES,
    arithmetic,
    check,
    check_rows,
    gather,
    map_tensors,
    multiply,
)
from backends.sscn.cuda.launching import launch, on_device_of_first
from backends.sscn.cuda.splitting import is_last, sum_of_parts, tickets
from backends.sscn.cuda.symbols import cdiv
from backends.sscn.kernel_map import GatherMap
from backends.sscn.layerwise import added

RUN = 512
"""Positions of a map per list of pairs; at most 2**16, as lists hold 16-bit positions."""

PAIRS = 32
"""Pairs over which one matrix product sums."""

ELEMENTS = 1024
"""Values per program of an elementwise kernel."""

_lists: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakIdKeyDictionary()
"""Table of a map -> its lists of pairs and their lengths."""


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
    source, scale, shift, grad, table, order, pairs, counts, to_weight, workspace, ticket, rows,
    runs, share,
    FIRST: tl.constexpr, CHANNELS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, RUN: tl.constexpr,
    NORM: tl.constexpr, SLOPE: tl.constexpr, IDENTITY: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the outer products of one tap over a share of the runs, for a block of channels.

    The last program of a block adds the shares of all.
    """
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
    if SPLIT:
        shares = tl.num_programs(0)
        block = tap * tl.num_programs(2) + tl.program_id(2)
        workspace += block * shares * (BLOCK_I * BLOCK_O)
        ticket += block
        if not is_last(total, workspace, ticket, tl.program_id(0), shares, BLOCK_I, BLOCK_O):
            return
        total = sum_of_parts(workspace, ticket, shares, BLOCK_I, BLOCK_O)
    where = tap * (IN * OUT) + (FIRST + channel)[:, None] * OUT + column[None, :]
    inside = (channel < CHANNELS)[:, None] & (column < OUT)[None, :]
    tl.store(to_weight + where, total.to(to_weight.dtype.element_ty), mask=inside)


@triton.jit
def _add_sums(grad_sums, row, channel, in_range):
    """Return the gradients of the sum and of the sum of squares of some channels."""
    to_sum = tl.load(grad_sums + channel, mask=in_range, other=0.0)
    to_squares = tl.load(grad_sums + row + channel, mask=in_range, other=0.0)
    return to_sum, to_squares


@triton.jit(do_not_specialize=["size", "row", "second_row", "third_row"])
def add_statistics_gradient(
    grad, second, third, out, grad_sums, second_sums, third_sums, total,
    size, row, second_row, third_row,
    GRADS: tl.constexpr, SUMS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up to three gradients of the values, and up to three of the sums.

    ``row`` and the others are the distances between the two rows of the gradients of sums.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = place < size
    channel = place % CHANNELS
    direct = tl.load(grad + place, mask=in_range, other=0.0).to(tl.float32)
    if GRADS > 1:
        direct += tl.load(second + place, mask=in_range, other=0.0).to(tl.float32)
    if GRADS > 2:
        direct += tl.load(third + place, mask=in_range, other=0.0).to(tl.float32)
    value = tl.load(out + place, mask=in_range, other=0.0).to(tl.float32)
    to_sum, to_squares = _add_sums(grad_sums, row, channel, in_range)
    if SUMS > 1:
        other_sum, other_squares = _add_sums(second_sums, second_row, channel, in_range)
        to_sum += other_sum
        to_squares += other_squares
    if SUMS > 2:
        other_sum, other_squares = _add_sums(third_sums, third_row, channel, in_range)
        to_sum += other_sum
        to_squares += other_squares
    through = to_sum.to(tl.float32) + 2.0 * value * to_squares.to(tl.float32)
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
    runs = cdiv(rows, RUN)
    pairs = counts = x
    if gather_map.tensors:
        pairs, counts = _listed(table)
    shapes = [product_blocks(each.shape[1], outputs, x.dtype, precision) for each in sources]
    blocks = taps * max(shape.blocks for shape in shapes)
    per_share = runs_per_share(runs, blocks)
    shares = cdiv(runs, per_share)
    values = max(shape.inputs * shape.outputs for shape in shapes)
    parts = x.new_empty((workspace_size(blocks, shares, values),), dtype=torch.float32)
    to_weight = x.new_empty((taps, channels, outputs))
    first = 0
    for source, shape in zip(sources, shapes, strict=True):
        width = source.shape[1]
        launch(
            weight_gradient_share, (shares, taps, shape.blocks),
            source.contiguous(), x if scale is None else scale.contiguous(),
            x if shift is None else shift.contiguous(), grad, table, order, pairs, counts,
            to_weight, parts, tickets(x), rows, runs, per_share,
            FIRST=first, CHANNELS=width, IN=channels, OUT=outputs,
            BLOCK_I=shape.inputs, BLOCK_O=shape.outputs, BLOCK_R=PAIRS, RUN=RUN,
            NORM=scale is not None, SLOPE=slope, IDENTITY=not gather_map.tensors, SPLIT=shares > 1,
            **arithmetic(x, precision), num_warps=shape.warps, num_stages=STAGES,
        )  # fmt: skip
        first += width
    return to_weight


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lists of pairs of a map and their lengths; they are written once per map."""
    found = _lists.get(table)
    if found is None:
        taps, rows = table.shape
        runs = cdiv(rows, RUN)
        pairs = table.new_empty((taps, runs, RUN), dtype=torch.int16)
        counts = table.new_empty((taps, runs), dtype=torch.int32)
        launch(list_pairs, (runs, taps), table, pairs, counts, rows, RUN=RUN)
        found = _lists[table] = pairs, counts
    return found


def statistics_gradient(grad: Tensor, out: Tensor, grad_sums: Tensor) -> Tensor:
    """Return ``grad + grad_sums[0] + 2 * out * grad_sums[1]``."""
    return total_gradient(grad, [], out, [grad_sums])


@on_device_of_first
def total_gradient(
    grad: Tensor, others: Sequence[Tensor], out: Tensor, grad_sums: Sequence[Tensor]
) -> Tensor:
    """Add all gradients of ``out`` and those through its sums, in one launch."""
    grads = [grad, *others] if len(others) < 3 else [grad, others[0], added(others[1:])]
    grads = [each.contiguous() for each in grads]
    for each in grads:
        check_rows(each, out.shape[0], out.shape[1], out.dtype, "gradient")
    sums = list(grad_sums) if len(grad_sums) <= 3 else [*grad_sums[:2], added(grad_sums[2:])]
    sums = [each if each.stride(1) == 1 else each.contiguous() for each in sums]
    total = out.new_empty(out.shape)
    if out.numel():
        unused_grads, unused_sums = [grads[0]] * (3 - len(grads)), [sums[0]] * (3 - len(sums))
        launch(
            add_statistics_gradient, (cdiv(out.numel(), ELEMENTS),),
            *grads, *unused_grads, out.contiguous(), *sums, *unused_sums, total, out.numel(),
            *(each.stride(0) for each in (*sums, *unused_sums)),
            GRADS=len(grads), SUMS=len(sums), CHANNELS=out.shape[1], BLOCK=ELEMENTS,
        )  # fmt: skip
    return total
