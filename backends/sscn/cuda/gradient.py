"""The weight gradient, added in fixed order, and the gradient through statistics."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

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
    or_absent,
)
from backends.sscn.cuda.jobs import grouped, numbered, of_job
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

ALIGNED = 16
"""Channels at whose multiples sources begin where they can; their loads are then wider."""

_lists: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakIdKeyDictionary()
"""Table of a map -> its lists of pairs and their lengths."""


@triton.jit(
    do_not_specialize=[
        "rows_0", "rows_1", "rows_2", "rows_3", "rows_4",
        "taps_0", "taps_1", "taps_2", "taps_3", "taps_4",
    ]
)  # fmt: skip
def list_pairs(
    table_0, table_1, table_2, table_3, table_4, pairs_0, pairs_1, pairs_2, pairs_3, pairs_4,
    counts_0, counts_1, counts_2, counts_3, counts_4, rows_0, rows_1, rows_2, rows_3, rows_4,
    taps_0, taps_1, taps_2, taps_3, taps_4, RUN: tl.constexpr,
):  # fmt: skip
    """List the positions of one run at which one tap of one map meets a site."""
    end_0 = (rows_0 + RUN - 1) // RUN * taps_0
    end_1 = end_0 + (rows_1 + RUN - 1) // RUN * taps_1
    end_2 = end_1 + (rows_2 + RUN - 1) // RUN * taps_2
    end_3 = end_2 + (rows_3 + RUN - 1) // RUN * taps_3
    program = tl.program_id(0)
    job = (program >= end_0).to(tl.int32) + (program >= end_1).to(tl.int32)
    job += (program >= end_2).to(tl.int32) + (program >= end_3).to(tl.int32)
    rows = of_job(job, rows_0, rows_1, rows_2, rows_3, rows_4)
    table = of_job(job, table_0, table_1, table_2, table_3, table_4)
    pairs = of_job(job, pairs_0, pairs_1, pairs_2, pairs_3, pairs_4)
    counts = of_job(job, counts_0, counts_1, counts_2, counts_3, counts_4)
    entry = (program - of_job(job, 0, end_0, end_1, end_2, end_3)).to(tl.int64)
    runs = (rows + RUN - 1) // RUN
    run = entry % runs
    tap = entry // runs
    local = tl.arange(0, RUN)
    position = run * RUN + local
    site = tl.load(table + tap * rows + position, mask=position < rows, other=-1)
    met = (site >= 0).to(tl.int32)
    tl.store(pairs + entry * RUN + tl.cumsum(met, 0) - 1, local.to(tl.int16), mask=met > 0)
    tl.store(counts + entry, tl.sum(met, 0))


@triton.jit(
    do_not_specialize=[
        "first_0", "first_1", "first_2", "first_3", "first_4",
        "inputs_0", "inputs_1", "inputs_2", "inputs_3", "inputs_4", "rows", "runs", "share",
    ]
)  # fmt: skip
def weight_gradient_share(
    source_0, source_1, source_2, source_3, source_4, scale_0, scale_1, scale_2, scale_3, scale_4,
    shift_0, shift_1, shift_2, shift_3, shift_4, grad_0, grad_1, grad_2, grad_3, grad_4,
    to_weight_0, to_weight_1, to_weight_2, to_weight_3, to_weight_4,
    first_0, first_1, first_2, first_3, first_4, inputs_0, inputs_1, inputs_2, inputs_3, inputs_4,
    table, order, pairs, counts, workspace, ticket, rows, runs, share,
    CHANNELS: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_R: tl.constexpr, RUN: tl.constexpr,
    NORM: tl.constexpr, SLOPE: tl.constexpr, IDENTITY: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the outer products of one tap over a share of the runs, for a block of channels.

    A job is a source of a layer, whose channels are those from ``first`` on of ``inputs``. The last
    program of a block adds the shares of all.
    """
    blocks_in: tl.constexpr = (CHANNELS + BLOCK_I - 1) // BLOCK_I
    blocks: tl.constexpr = blocks_in * ((OUT + BLOCK_O - 1) // BLOCK_O)
    job = tl.program_id(2) // blocks
    block = tl.program_id(2) % blocks
    source = of_job(job, source_0, source_1, source_2, source_3, source_4)
    grad = of_job(job, grad_0, grad_1, grad_2, grad_3, grad_4)
    to_weight = of_job(job, to_weight_0, to_weight_1, to_weight_2, to_weight_3, to_weight_4)
    first = tl.multiple_of(of_job(job, first_0, first_1, first_2, first_3, first_4), ALIGNED)
    inputs = of_job(job, inputs_0, inputs_1, inputs_2, inputs_3, inputs_4)
    scale = of_job(job, scale_0, scale_1, scale_2, scale_3, scale_4) + first
    shift = of_job(job, shift_0, shift_1, shift_2, shift_3, shift_4) + first
    tap = tl.program_id(1).to(tl.int64)
    channel = (block % blocks_in) * BLOCK_I + tl.arange(0, BLOCK_I)
    column = (block // blocks_in) * BLOCK_O + tl.arange(0, BLOCK_O)
    begin = tl.program_id(0) * share
    total = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for run in range(begin, tl.minimum(begin + share, runs)):
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
            a = gather(source, scale, shift, site, channel, CHANNELS, BLOCK_I, NORM, SLOPE)
            valid = in_range[:, None] & (column < OUT)[None, :]
            b = tl.load(grad + row[:, None] * OUT + column[None, :], mask=valid, other=0.0)
            total = multiply(tl.trans(a), b, total, PRECISION, UPCAST)
    if SPLIT:
        shares = tl.num_programs(0)
        of_all = tap * tl.num_programs(2) + tl.program_id(2)
        workspace += of_all * shares * (BLOCK_I * BLOCK_O)
        ticket += of_all
        if not is_last(total, workspace, ticket, tl.program_id(0), shares, BLOCK_I, BLOCK_O):
            return
        total = sum_of_parts(workspace, ticket, shares, BLOCK_I, BLOCK_O)
    where = (tap * inputs + first + channel[:, None]) * OUT + column[None, :]
    inside = (channel < CHANNELS)[:, None] & (column < OUT)[None, :]
    value = total.to(source.dtype.element_ty).to(to_weight.dtype.element_ty)
    tl.store(to_weight + where, value, mask=inside)


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


class Product(NamedTuple):
    """A convolution whose weight gradient is needed.

    Attributes
    ----------
    x : Tensor
    skip : Tensor or None
    grad : Tensor
        The gradient of its output.
    gather_map : GatherMap
        Its forward map.
    scale, shift : Tensor or None
    slope : float
    """

    x: Tensor
    skip: Tensor | None
    grad: Tensor
    gather_map: GatherMap
    scale: Tensor | None
    shift: Tensor | None
    slope: float = 0.0

    @property
    def sources(self) -> list[Tensor]:
        """The inputs."""
        return [self.x] if self.skip is None else [self.x, self.skip]


class _Kind(NamedTuple):
    """Sources of layers with the same kind share a launch."""

    channels: int
    outputs: int
    blocks: int
    norm: bool
    slope: float


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
    product = Product(x, skip, grad, gather_map, scale, shift, slope)
    (found,) = weight_gradients(x, [product])
    return found


@on_device_of_first
def weight_gradients(
    x: Tensor, products: Sequence[Product], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Return the weight gradients of convolutions over the same map, in as few launches as can be.

    Their values are those of ``weight_gradient``.

    Parameters
    ----------
    x : Tensor
        The input of the first one.
    products : sequence of Product
    dtype : torch.dtype, optional
        The type of the gradients, whose values are rounded to that of the rows in any case.
    """
    gather_map = products[0].gather_map
    rows, taps = gather_map.rows, gather_map.taps
    found = []
    jobs: dict[_Kind, list[tuple[Any, ...]]] = {}
    precision = dot_precision(x.dtype)
    for each in products:
        sources, outputs = each.sources, each.grad.shape[1]
        channels = sum(source.shape[1] for source in sources)
        check(each.x, each.skip, each.scale, each.shift, channels)
        check_rows(each.grad, rows, outputs, x.dtype, "gradient")
        if rows == 0:
            found.append(x.new_zeros((taps, channels, outputs)))
            continue
        to_weight = x.new_empty((taps, channels, outputs), dtype=dtype or x.dtype)
        found.append(to_weight)
        widths = [source.shape[1] for source in sources]
        shapes = [product_blocks(width, outputs, x.dtype, precision) for width in widths]
        blocks = taps * max(shape.blocks for shape in shapes)
        first = 0
        for source, width in zip(sources, widths, strict=True):
            kind = _Kind(width, outputs, blocks, each.scale is not None, each.slope)
            jobs.setdefault(kind, []).append(
                (
                    source.contiguous(), or_absent(each.scale, x), or_absent(each.shift, x),
                    each.grad.contiguous(), to_weight, first, channels,
                )
            )  # fmt: skip
            first += width
    for kind, of_kind in jobs.items():
        for together in grouped(of_kind):
            _launch_products(x, kind, together, gather_map, precision)
    return found


def _launch_products(
    x: Tensor,
    kind: _Kind,
    jobs: Sequence[tuple[Any, ...]],
    gather_map: GatherMap,
    precision: str,
) -> None:
    """Launch the products of sources of the same kind."""
    rows, taps = gather_map.rows, gather_map.taps
    table, order, _, _ = map_tensors(gather_map, x)
    pairs = counts = x
    if gather_map.tensors:
        pairs, counts = _listed(table)
    shape = product_blocks(kind.channels, kind.outputs, x.dtype, precision)
    runs = cdiv(rows, RUN)
    per_share = runs_per_share(runs, kind.blocks)
    shares = cdiv(runs, per_share)
    blocks = shape.blocks * len(jobs)
    size = workspace_size(taps * blocks, shares, shape.inputs * shape.outputs)
    launch(
        weight_gradient_share, (shares, taps, blocks),
        *numbered(jobs, jobs[0]), table, order, pairs, counts,
        x.new_empty((size,), dtype=torch.float32), tickets(x), rows, runs, per_share,
        CHANNELS=kind.channels, OUT=kind.outputs,
        ALIGNED=math.gcd(ALIGNED, *(first for *_, first, _ in jobs)),
        BLOCK_I=shape.inputs, BLOCK_O=shape.outputs, BLOCK_R=PAIRS, RUN=RUN,
        NORM=kind.norm, SLOPE=kind.slope, IDENTITY=not gather_map.tensors, SPLIT=shares > 1,
        **arithmetic(x, precision), num_warps=shape.warps, num_stages=STAGES,
    )  # fmt: skip


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lists of pairs of a map and their lengths; they are written once per map."""
    if table not in _lists:
        list_maps([table])
    return _lists[table]


def list_maps(tables: Sequence[Tensor]) -> None:
    """List the pairs of maps."""
    for together in grouped(tables):
        jobs, programs = [], 0
        for table in together:
            taps, rows = table.shape
            runs = cdiv(rows, RUN)
            pairs = table.new_empty((taps, runs, RUN), dtype=torch.int16)
            counts = table.new_empty((taps, runs), dtype=torch.int32)
            _lists[table] = pairs, counts
            jobs.append((table, pairs, counts, rows, taps))
            programs += runs * taps
        unused = (*jobs[0][:3], 0, 0)
        launch(list_pairs, (programs,), *numbered(jobs, unused), RUN=RUN)


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
