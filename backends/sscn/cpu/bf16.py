"""The C++ kernels with products of bf16: what is multiplied is rounded, all else is float32.

Rows and weights stay float32. Convolutions, forward and back to their inputs, round both where they
gather them and add products up in float32; processors with AVX512_BF16 multiply pairs at once,
others the rounded floats. The gradients of the weights are those of float32.
"""

from __future__ import annotations

import functools

from backends.sscn import cpu
from backends.sscn.cpu import *  # noqa: F403 - the kernels of float32, but for the names below
from backends.sscn.cpu import program
from backends.sscn.cpu.instructions import Products

convolve = functools.partial(cpu.convolve, products=Products.BFLOAT16)
gradients = functools.partial(cpu.gradients, products=Products.BFLOAT16)


class Forward(program.Forward):  # type: ignore[no-redef]
    """Runs layers as those of float32 do."""

    products = Products.BFLOAT16


class Backward(program.Backward):  # type: ignore[no-redef]
    """Makes gradients as those of float32 do."""

    products = Products.BFLOAT16
