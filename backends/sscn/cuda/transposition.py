"""Transposed weights for input gradients; a plan transposes those of all layers in one launch.

Rows of weights that lie side by side in memory are multiplied several times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.launching import launch
from backends.sscn.cuda.symbols import cdiv, current_tape

BLOCK = 32
"""Rows and columns that a program transposes."""


@triton.jit
def _transpose_block(weight, transposed, block, taps, rows, columns, mirrored, BLOCK: tl.constexpr):
    """Transpose one block of a tap."""
    across = (columns + BLOCK - 1) // BLOCK
    down = (rows + BLOCK - 1) // BLOCK
    tap = block // (across * down)
    row = (block // across % down) * BLOCK + tl.arange(0, BLOCK)
    column = (block % across) * BLOCK + tl.arange(0, BLOCK)
    valid = (row < rows)[:, None] & (column < columns)[None, :]
    where = tap * rows * columns + row[:, None] * columns + column[None, :]
    value = tl.load(weight + where, mask=valid, other=0.0)
    tap = tl.where(mirrored > 0, taps - 1 - tap, tap)
    valid = (column < columns)[:, None] & (row < rows)[None, :]
    where = tap * rows * columns + column[:, None] * rows + row[None, :]
    tl.store(transposed + where, tl.trans(value), mask=valid)


@triton.jit(do_not_specialize=["taps", "rows", "columns", "mirrored"])
def transpose_weights(
    weight, transposed, taps, rows, columns, mirrored, BLOCK: tl.constexpr
):  # fmt: skip
    """Transpose one block of a tap of the weights of one layer."""
    block = tl.program_id(0).to(tl.int64)
    _transpose_block(weight, transposed, block, taps, rows, columns, mirrored, BLOCK)


@triton.jit(do_not_specialize=["count"])
def transpose_all_weights(jobs, transposed, count, BLOCK: tl.constexpr):
    """Transpose one block of a tap of the weights of several layers.

    A row of ``jobs`` has the first program of a layer, the address of its weights, their place in
    ``transposed``, taps, rows, columns, and whether the order of the taps is reversed.
    """
    program = tl.program_id(0).to(tl.int64)
    job = 0
    for each in range(1, count):
        job += (tl.load(jobs + 7 * each) <= program).to(tl.int32)
    jobs += 7 * job
    weight = tl.load(jobs + 1).to(tl.pointer_type(transposed.dtype.element_ty))
    taps, rows, columns = tl.load(jobs + 3), tl.load(jobs + 4), tl.load(jobs + 5)
    transposed += tl.load(jobs + 2)
    block = program - tl.load(jobs)
    _transpose_block(weight, transposed, block, taps, rows, columns, tl.load(jobs + 6), BLOCK)


def transposed(weight: Tensor, mirrored: bool) -> Tensor:
    """Return weights (K, C_in, C_out) as (K, C_out, C_in), with the taps reversed if mirrored."""
    tape = current_tape()
    if tape is not None:
        found: Tensor = tape.transposed(weight, mirrored)
        return found
    taps, rows, columns = weight.shape
    made = weight.new_empty((taps, columns, rows))
    launch(
        transpose_weights, (_programs(weight),), weight.contiguous(), made, taps, rows, columns,
        int(mirrored), BLOCK=BLOCK,
    )  # fmt: skip
    return made


def transpose_all(weights: Sequence[tuple[Tensor, bool, int]], made: Any) -> None:
    """Transpose the weights of several layers in one launch, while a plan is made.

    Parameters
    ----------
    weights : sequence of (Tensor, bool, int)
        Contiguous weights, whether they are mirrored, and their place in ``made``, in values.
    made : Symbol
        The array of all.
    """
    jobs, programs = [], 0
    for weight, mirrored, place in weights:
        jobs.append([programs, weight.data_ptr(), place, *weight.shape, int(mirrored)])
        programs += _programs(weight)
    listed = torch.tensor(jobs, dtype=torch.int64).to(weights[0][0].device)
    current_tape().keep([listed])
    launch(transpose_all_weights, (programs,), listed, made, len(jobs), BLOCK=BLOCK)


def _programs(weight: Tensor) -> int:
    """Return the number of blocks of some weights."""
    taps, rows, columns = weight.shape
    programs: int = taps * cdiv(rows, BLOCK) * cdiv(columns, BLOCK)
    return programs
