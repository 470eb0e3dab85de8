"""The convolution and its input gradient: implicit matrix products over tiles of rows.

One program computes a tile of output rows. It loops over the taps that any row of its tile has,
gathers the input rows of a tap directly into an operand of the matrix product, with batch
normalisation and activation applied, and accumulates in float32 registers. The result is stored
once, after the residual is added and the sums of the tile are computed. The sums of tiles are added
in a fixed order. Where tiles are few, several programs share the taps of a tile (``splitting``).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.contract import Unsupported
from backends.sscn.cuda.blocks import (
    LEAST_STEPS,
    Blocks,
    convolution_blocks,
    dot_precision,
    splits,
    tile_rows,
    workspace_size,
)
from backends.sscn.cuda.launching import INTERPRETED, launch, on_device_of_first
from backends.sscn.cuda.norm import (
    CHANNELS,
    MOST_PARTS,
    NO_FOLD,
    ROUNDS,
    Following,
    fold_block,
    fold_block_gradient,
    fold_gradient,
    norm_gradients,
)
from backends.sscn.cuda.splitting import (
    is_last,
    is_last_of_launch,
    number_of_parts,
    sum_of_parts,
    tickets,
)
from backends.sscn.cuda.symbols import cdiv
from backends.sscn.cuda.transposition import transposed
from backends.sscn.deferred_layer import Folding
from backends.sscn.kernel_map import GatherMap

TYPES = (torch.float32, torch.float16, torch.bfloat16)
STAGES = 3
"""Pipeline stages: number of matrix products whose operands are loaded at the same time."""


@triton.jit
def gather(
    source, scale, shift, site, channel,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Load some channels of the given rows, normalised and activated; absent rows are zero."""
    valid = (site >= 0)[:, None]
    if CHANNELS % BLOCK_K != 0:
        valid = valid & (channel < CHANNELS)[None, :]
    where = site.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    value = tl.load(source + where, mask=valid, other=0.0)
    if NORM:
        in_range = channel < CHANNELS
        gain = tl.load(scale + channel, mask=in_range, other=0.0)
        offset = tl.load(shift + channel, mask=in_range, other=0.0)
        active = value.to(tl.float32) * gain[None, :] + offset[None, :]
        if SLOPE == 0:
            active = tl.maximum(active, 0.0)
        else:
            active = tl.where(active > 0.0, active, active * SLOPE)
        value = tl.where(valid, active, 0.0).to(source.dtype.element_ty)
    return value


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Add a matrix product in float32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _accumulate(
    total, source, scale, shift, weight, table, taps, start, stop, position, inside, column, rows,
    FIRST: tl.constexpr, CHANNELS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, NORM: tl.constexpr,
    SLOPE: tl.constexpr, IDENTITY: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add some steps of one source, which is the input from channel FIRST on."""
    chunks: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    for step in range(start, stop):
        channel = (step % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
        if IDENTITY:
            tap = 0
            site = tl.where(inside, position, -1)
        else:
            tap = tl.load(taps + step // chunks)
            site = tl.load(table + tap.to(tl.int64) * rows + position, mask=inside, other=-1)
        a = gather(
            source, scale + FIRST, shift + FIRST, site, channel, CHANNELS, BLOCK_K, NORM, SLOPE
        )
        row = FIRST + channel
        where = tap * (IN * OUT) + row[:, None] * OUT + column[None, :]
        if CHANNELS % BLOCK_K == 0 and OUT % BLOCK_N == 0:
            b = tl.load(weight + where)
        else:
            in_range = (channel < CHANNELS)[:, None] & (column < OUT)[None, :]
            b = tl.load(weight + where, mask=in_range, other=0.0)
        total = multiply(a, b, total, PRECISION, UPCAST)
    return total


@triton.jit(do_not_specialize=["rows"])
def convolve_tile(
    x, skip, scale, shift, weight, table, order, taps, counts, residual, out, sums, workspace,
    ticket, norm_sums, norm_second_sums, norm_weight, norm_bias, running_mean, running_var,
    norm_scale, norm_shift, moments, rows,
    FIRST: tl.constexpr, SECOND: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr,
    SLOPE: tl.constexpr, RESIDUAL: tl.constexpr, STATISTICS: tl.constexpr, IDENTITY: tl.constexpr,
    SPLIT: tl.constexpr, LEAST: tl.constexpr, FOLD_FIRST: tl.constexpr, FOLD_SECOND: tl.constexpr,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, BLOCK_C: tl.constexpr, ROUNDS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Convolve into BLOCK_M output rows and BLOCK_N output channels.

    The last program folds a norm, of FOLD_FIRST and FOLD_SECOND channels, for a later layer.
    """
    tile = tl.program_id(0).to(tl.int64)
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = position < rows
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if IDENTITY:
        count = 1
        row = position
    else:
        count = tl.load(counts + tile)
        taps += tile * TAPS
    start, stop = 0, count * ((FIRST + BLOCK_K - 1) // BLOCK_K)
    second_start, second_stop = 0, count * ((SECOND + BLOCK_K - 1) // BLOCK_K)
    if SPLIT:
        parts = number_of_parts(stop + second_stop, LEAST)
        part = tl.program_id(2)
        if part >= parts:
            return
        low = (stop + second_stop) * part // parts
        high = (stop + second_stop) * (part + 1) // parts
        start, second_start = tl.minimum(low, stop), tl.maximum(low - stop, 0)
        second_stop, stop = tl.maximum(high - stop, 0), tl.minimum(high, stop)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = _accumulate(
        total, x, scale, shift, weight, table, taps, start, stop, position, inside, column, rows,
        0, FIRST, FIRST + SECOND, OUT, TAPS, BLOCK_K, BLOCK_N, NORM, SLOPE,
        IDENTITY, PRECISION, UPCAST,
    )  # fmt: skip
    if SECOND > 0:
        total = _accumulate(
            total, skip, scale, shift, weight, table, taps, second_start, second_stop, position,
            inside, column, rows, FIRST, SECOND, FIRST + SECOND, OUT, TAPS, BLOCK_K, BLOCK_N, NORM,
            SLOPE, IDENTITY, PRECISION, UPCAST,
        )  # fmt: skip
    if SPLIT:  # noqa: SIM102 (a constant of the kernel is tested by itself)
        if parts > 1:
            block = tile * tl.num_programs(1) + tl.program_id(1)
            workspace += block * tl.num_programs(2) * (BLOCK_M * BLOCK_N)
            if not is_last(total, workspace, ticket + block, part, parts, BLOCK_M, BLOCK_N):
                return
            total = sum_of_parts(workspace, ticket + block, parts, BLOCK_M, BLOCK_N)
    if not IDENTITY:
        row = tl.load(order + position, mask=inside, other=0)
    valid = inside[:, None] & (column < OUT)[None, :]
    where = row[:, None] * OUT + column[None, :]
    if RESIDUAL:
        total += tl.load(residual + where, mask=valid, other=0.0).to(tl.float32)
    value = total.to(out.dtype.element_ty)
    tl.store(out + where, value, mask=valid)
    if STATISTICS:
        # Relative to the mean of the tile, so that float32 is precise enough for a large mean.
        seen = tl.where(valid, value.to(tl.float32), 0.0)
        here = tl.minimum(rows - tile * BLOCK_M, BLOCK_M)
        mean = tl.sum(seen, 0) / here.to(tl.float32)
        deviation = tl.where(valid, seen - mean[None, :], 0.0)
        rest = tl.sum(deviation, 0).to(tl.float64)
        squares = tl.sum(deviation * deviation, 0).to(tl.float64)
        mean = mean.to(tl.float64)
        squares += 2.0 * mean * rest + mean * mean * here
        of_tile = sums + tile * (2 * OUT)
        tl.store(of_tile + column, mean * here + rest, mask=column < OUT)
        tl.store(of_tile + OUT + column, squares, mask=column < OUT)
    if FOLD_FIRST > 0:  # noqa: SIM102 (a constant of the kernel is tested by itself)
        if is_last_of_launch(ticket):
            tiles = tl.num_programs(0)
            for channel in range(0, FOLD_FIRST + FOLD_SECOND, BLOCK_C):
                fold_block(
                    norm_sums, norm_second_sums, norm_weight, norm_bias, running_mean, running_var,
                    norm_scale, norm_shift, moments, tiles, tiles, rows, channel, EPS, MOMENTUM,
                    FOLD_FIRST, FOLD_SECOND, BLOCK_C, ROUNDS,
                )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def input_gradient_tile(
    grad, x, skip, scale, shift, weight, table, order, taps, counts, to_x, to_skip, sums, workspace,
    ticket, norm_weight, moments, to_sums, to_norm_weight, to_norm_bias, rows,
    FIRST: tl.constexpr, SECOND: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr,
    SLOPE: tl.constexpr, IDENTITY: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr,
    FOLD: tl.constexpr, BLOCK_C: tl.constexpr, ROUNDS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Convolve a gradient of OUT channels back to BLOCK_M input rows and BLOCK_N channels.

    The last program propagates the gradients of scale and shift through the folding of the norm.
    """
    channels: tl.constexpr = FIRST + SECOND
    tile = tl.program_id(0).to(tl.int64)
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = position < rows
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if IDENTITY:
        count = 1
        row = position
    else:
        count = tl.load(counts + tile)
        taps += tile * TAPS
    start, stop = 0, count * ((OUT + BLOCK_K - 1) // BLOCK_K)
    if SPLIT:
        parts = number_of_parts(stop, LEAST)
        part = tl.program_id(2)
        if part >= parts:
            return
        start, stop = stop * part // parts, stop * (part + 1) // parts
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    total = _accumulate(
        total, grad, scale, shift, weight, table, taps, start, stop, position, inside, column, rows,
        0, OUT, OUT, channels, TAPS, BLOCK_K, BLOCK_N, False, 0.0,
        IDENTITY, PRECISION, UPCAST,
    )  # fmt: skip
    if SPLIT:  # noqa: SIM102 (a constant of the kernel is tested by itself)
        if parts > 1:
            block = tile * tl.num_programs(1) + tl.program_id(1)
            workspace += block * tl.num_programs(2) * (BLOCK_M * BLOCK_N)
            if not is_last(total, workspace, ticket + block, part, parts, BLOCK_M, BLOCK_N):
                return
            total = sum_of_parts(workspace, ticket + block, parts, BLOCK_M, BLOCK_N)
    if not IDENTITY:
        row = tl.load(order + position, mask=inside, other=0)
    in_x = inside[:, None] & (column < FIRST)[None, :]
    where_x = row[:, None] * FIRST + column[None, :]
    in_skip = inside[:, None] & ((column >= FIRST) & (column < channels))[None, :]
    where_skip = row[:, None] * SECOND + (column - FIRST)[None, :]
    if NORM:
        value = tl.load(x + where_x, mask=in_x, other=0.0).to(tl.float32)
        if SECOND > 0:
            value += tl.load(skip + where_skip, mask=in_skip, other=0.0).to(tl.float32)
        in_range = column < channels
        gain = tl.load(scale + column, mask=in_range, other=0.0)
        offset = tl.load(shift + column, mask=in_range, other=0.0)
        positive = value * gain[None, :] + offset[None, :] > 0.0
        if SLOPE == 0:
            total = tl.where(positive & inside[:, None], total, 0.0)
        else:
            total = tl.where(positive, total, total * SLOPE)
            total = tl.where(inside[:, None], total, 0.0)
        of_tile = sums + tile * (2 * channels)
        tl.store(of_tile + column, tl.sum(total * value, 0).to(tl.float64), mask=in_range)
        tl.store(of_tile + channels + column, tl.sum(total, 0).to(tl.float64), mask=in_range)
        total = total * gain[None, :]
    tl.store(to_x + where_x, total.to(to_x.dtype.element_ty), mask=in_x)
    if SECOND > 0:
        tl.store(to_skip + where_skip, total.to(to_x.dtype.element_ty), mask=in_skip)
    if FOLD:  # noqa: SIM102 (a constant of the kernel is tested by itself)
        if is_last_of_launch(ticket):
            for channel in range(0, channels, BLOCK_C):
                fold_block_gradient(
                    sums, norm_weight, moments, to_sums, to_norm_weight, to_norm_bias,
                    tl.num_programs(0), rows, channel, channels, BLOCK_C, ROUNDS,
                )  # fmt: skip


def convolve(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Convolve, add the residual, and sum the result for the norm that follows."""
    out, sums = convolve_in_parts(*arguments)
    return out, sums.sum(0) if sums.dim() == 3 else sums


@on_device_of_first
def convolve_in_parts(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    gather_map: GatherMap,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
    slope: float = 0.0,
    following: Following | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve like ``convolve``; the sums are one per tile, (tiles, 2, C_out).

    The norm of ``following``, if it is given, is folded.
    """
    taps, inputs, channels = weight.shape
    rows = gather_map.rows
    check(x, skip, scale, shift, inputs)
    check_weight(weight, gather_map, x.dtype)
    if residual is not None:
        check_rows(residual, rows, channels, x.dtype, "residual")
    if not gather_map.tensors:
        check_rows(x, rows, x.shape[1], x.dtype, "input")
    first, second = x.shape[1], 0 if skip is None else skip.shape[1]
    tile = tile_rows(rows)
    tiles = cdiv(rows, tile)
    out = x.new_empty((rows, channels))
    sums = x.new_empty((tiles, 2, channels) if statistics else (0,), dtype=torch.float64)
    fold = None
    if following is not None:
        fold = following.in_a_launch(sums)
    if rows:
        precision = dot_precision(x.dtype)
        sources = (first, second) if second else (first,)
        shape = convolution_blocks(tile, sources, channels, x.dtype, precision)
        columns = cdiv(channels, shape.columns)
        parts, parts_of_sums = _parts(x, gather_map, shape, columns, sources)
        launch(
            convolve_tile, (tiles, columns, parts),
            x.contiguous(), or_absent(skip, x), or_absent(scale, x), or_absent(shift, x),
            weight.contiguous(), *map_tensors(gather_map, x), or_absent(residual, x), out, sums,
            parts_of_sums, tickets(x), *((x,) * 9 if fold is None else fold.tensors), rows,
            FIRST=first, SECOND=second, OUT=channels, TAPS=taps,
            BLOCK_M=shape.rows, BLOCK_N=shape.columns, BLOCK_K=shape.depth,
            NORM=scale is not None, SLOPE=slope, RESIDUAL=residual is not None,
            STATISTICS=statistics, IDENTITY=not gather_map.tensors, SPLIT=parts > 1,
            LEAST=LEAST_STEPS, **(NO_FOLD if fold is None else fold.constants),
            **arithmetic(x, precision), num_warps=shape.warps, num_stages=STAGES,
        )  # fmt: skip
    if following is not None and fold is None:
        following.fold(sums)
    return out, sums


def input_gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate the gradient of the output to the inputs, over the backward map."""
    to_x, to_skip, sums, _ = _input_gradient(*arguments)
    return to_x, to_skip, sums.sum(0) if sums.dim() == 3 else sums


@on_device_of_first
def input_gradient_through_norm(
    grad: Tensor,
    weight: Tensor,
    gather_map: GatherMap,
    mirrored: bool,
    x: Tensor,
    skip: Tensor | None,
    folding: Folding,
    norm_weight: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Propagate the gradient to the inputs and through the norm of the batch."""
    to_x, to_skip, to_norm, found = _input_gradient(
        grad, weight, gather_map, mirrored, x, skip, folding.scale, folding.shift, slope,
        (norm_weight, folding.moments),
    )  # fmt: skip
    if found is None:
        found = fold_gradient(to_norm, norm_weight, folding.moments, gather_map.rows)
    return to_x, to_skip, found


@on_device_of_first
def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    gather_map: GatherMap,
    mirrored: bool,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float = 0.0,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Propagate like ``input_gradient``; the gradients of the norm are one per tile.

    With ``norm``, the weight and the moments of the norm of a batch, the last value is that of
    ``fold_gradient``, unless that needs a launch of its own.
    """
    taps, channels, outputs = weight.shape
    rows = gather_map.rows
    check(x, skip, scale, shift, channels)
    check_weight(weight, gather_map, x.dtype)
    check_rows(x, rows, x.shape[1], x.dtype, "input")
    check_rows(grad, grad.shape[0], outputs, x.dtype, "gradient")
    first, second = x.shape[1], 0 if skip is None else skip.shape[1]
    tile = tile_rows(rows)
    tiles = cdiv(rows, tile)
    to_x = x.new_empty(x.shape)
    to_skip = x.new_empty((rows, second) if second else (0,))
    sums = x.new_empty(
        (tiles, 2, channels) if scale is not None else (0,), dtype=torch.float64
    )  # fmt: skip
    through_norm = None
    if norm is not None and rows and tiles <= MOST_PARTS:
        through_norm = norm_gradients(sums, norm[0])
    if rows:
        precision = dot_precision(x.dtype)
        shape = convolution_blocks(tile, (outputs,), channels, x.dtype, precision)
        columns = cdiv(channels, shape.columns)
        parts, parts_of_sums = _parts(x, gather_map, shape, columns, (outputs,))
        of_norm = (x,) * 5
        if norm is not None and through_norm is not None:
            of_norm = (*norm, *through_norm)
        launch(
            input_gradient_tile, (tiles, columns, parts),
            grad.contiguous(), x.contiguous(), or_absent(skip, x), or_absent(scale, x),
            or_absent(shift, x), transposed(weight, mirrored), *map_tensors(gather_map, x),
            to_x, to_skip, sums, parts_of_sums, tickets(x), *of_norm, rows,
            FIRST=first, SECOND=second, OUT=outputs, TAPS=taps,
            BLOCK_M=shape.rows, BLOCK_N=shape.columns, BLOCK_K=shape.depth,
            NORM=scale is not None, SLOPE=slope, IDENTITY=not gather_map.tensors,
            SPLIT=parts > 1, LEAST=LEAST_STEPS, FOLD=through_norm is not None, BLOCK_C=CHANNELS,
            ROUNDS=ROUNDS, **arithmetic(x, precision),
            num_warps=shape.warps, num_stages=STAGES,
        )  # fmt: skip
    return to_x, to_skip, sums, through_norm


def _parts(
    x: Tensor, gather_map: GatherMap, shape: Blocks, columns: int, sources: tuple[int, ...]
) -> tuple[int, Tensor]:
    """Return the number of programs of a block of sums, and the workspace for their parts."""
    if not gather_map.tensors:
        return 1, x.new_empty((0,), dtype=torch.float32)
    blocks = cdiv(gather_map.rows, shape.rows) * columns
    chunks = sum(cdiv(channels, shape.depth) for channels in sources)
    parts = splits(blocks, gather_map.taps * chunks)
    size = workspace_size(blocks, parts, shape.rows * shape.columns)
    return parts, x.new_empty((size,), dtype=torch.float32)


def check(
    x: Tensor, skip: Tensor | None, scale: Tensor | None, shift: Tensor | None, channels: int
) -> None:
    """Check the types and shapes of the inputs, which the kernels do not check.

    Raises
    ------
    Unsupported
        If the kernels do not support the type.
    ValueError
        If shapes do not match, or types differ.
    """
    if x.dtype not in TYPES:
        raise Unsupported(
            f"the cuda kernels compute in float32, float16 and bfloat16, not {x.dtype}; "
            "use kernels=reference"
        )
    width = x.shape[1]
    if skip is not None:
        width += skip.shape[1]
        if skip.shape[0] != x.shape[0] or skip.dtype != x.dtype:
            raise ValueError(
                f"both sources must have {x.shape[0]} rows of {x.dtype}, not {skip.shape[0]} of "
                f"{skip.dtype}"
            )
    if width != channels:
        raise ValueError(f"the weights take {channels} channels, not {width}")
    for each in (scale, shift):
        if each is not None and (each.shape != (channels,) or each.dtype != torch.float32):
            raise ValueError(f"scale and shift must be {channels} values of torch.float32")


def check_rows(values: Tensor, rows: int, channels: int, dtype: torch.dtype, name: str) -> None:
    """Check the number, the width and the type of rows against the map and the weights."""
    if values.shape != (rows, channels) or values.dtype != dtype:
        raise ValueError(
            f"the {name} must have shape {(rows, channels)} and type {dtype}, not "
            f"{tuple(values.shape)} and {values.dtype}"
        )


def check_weight(weight: Tensor, gather_map: GatherMap, dtype: torch.dtype) -> None:
    """Check the number of taps of the weights against the map, and their type against the rows."""
    if weight.shape[0] != gather_map.taps or weight.dtype != dtype:
        raise ValueError(
            f"the weights must have {gather_map.taps} taps of {dtype}, not {weight.shape[0]} of "
            f"{weight.dtype}"
        )


def arithmetic(x: Tensor, precision: str) -> dict[str, Any]:
    """Return the constants and compiler options for the arithmetic of a kernel."""
    return {
        "PRECISION": precision,
        "UPCAST": INTERPRETED and x.dtype == torch.bfloat16,
        "enable_fp_fusion": True,  # without it, an IEEE multiply-add is two instructions
    }


def map_tensors(gather_map: GatherMap, absent: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors of a map; for an identity, placeholders that the kernel does not read."""
    return gather_map.tensors or (absent,) * 4


def or_absent(tensor: Tensor | None, absent: Tensor) -> Tensor:
    """Return a tensor, or if it is None a placeholder that the kernel does not read."""
    return absent if tensor is None else tensor.contiguous()
