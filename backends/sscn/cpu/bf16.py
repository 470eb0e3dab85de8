"""The C++ kernels with products of bf16: what is multiplied is rounded, all else is float32.

Rows and weights stay float32. Convolutions, forward and back to their inputs, round both where they
gather them and add products up in float32; processors with AVX512_BF16 multiply pairs at once,
others the rounded floats. The gradients of the weights are those of float32.
"""

from __future__ import annotations

import functools

from backends.sscn import cpu
from backends.sscn.cpu import (
    fold,
    fold_gradient,
    instruction_set,
    inverted,
    ordinary_map,
    program,
    sort_sites,
    strided_map,
    submanifold_map,
    take,
)
from backends.sscn.cpu.instructions import Products

__all__ = [
    "Backward",
    "Forward",
    "convolve",
    "fold",
    "fold_gradient",
    "gradients",
    "instruction_set",
    "inverted",
    "ordinary_map",
    "sort_sites",
    "strided_map",
    "submanifold_map",
    "take",
]

convolve = functools.partial(cpu.convolve, products=Products.BFLOAT16)
gradients = functools.partial(cpu.gradients, products=Products.BFLOAT16)


class Forward(program.Forward):
    """Runs layers as those of float32 do."""

    products = Products.BFLOAT16


class Backward(program.Backward):
    """Makes gradients as those of float32 do."""

    products = Products.BFLOAT16
