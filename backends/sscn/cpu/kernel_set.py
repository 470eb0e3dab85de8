"""The C++ kernels as kernel sets: ``cpu``, and ``cpu.bf16`` with products of bfloat16.

For ``cpu.bf16``, rows and weights are float32 as well. Convolutions and their input gradients round
both to bfloat16 while gathering and accumulate the products in float32. Processors with AVX512_BF16
multiply pairs of bfloat16 at once; others multiply the rounded floats. Gradients of weights are the
same as those of ``cpu``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from backends.sscn.cpu import convolution, maps, norm, processor, rows
from backends.sscn.cpu.encoding import Products
from backends.sscn.cpu.program import BackwardProgram, ForwardProgram
from backends.sscn.kernel_map import GatherMap, KernelMap
from backends.sscn.kernel_set import ConvolutionGradients, KernelSet


class CpuKernels(KernelSet):
    """The C++ kernels.

    Parameters
    ----------
    name : str
        Name of the kernel set.
    products : Products
        Rounding of factors.
    """

    def __init__(self, name: str, products: Products) -> None:
        self.name = name
        self.products = products

    sort_sites = staticmethod(maps.sort_sites)
    submanifold_map = staticmethod(maps.submanifold_map)
    strided_map = staticmethod(maps.strided_map)
    ordinary_map = staticmethod(maps.ordinary_map)
    fold = staticmethod(norm.fold)
    fold_gradient = staticmethod(norm.fold_gradient)
    inverted = staticmethod(rows.inverted)
    take = staticmethod(rows.take)

    @property
    def instruction_set(self) -> str:
        """The processor's instruction set in use."""
        return processor.instruction_set()

    def convolve(
        self,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        gather_map: GatherMap,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        statistics: bool,
        slope: float = 0.0,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Convolve, add the residual, and sum the result."""
        return convolution.convolve(
            x, skip, weight, gather_map, scale, shift, residual, statistics, slope, self.products
        )

    def gradients(
        self,
        grad: Tensor,
        out: Tensor | None,
        grad_sums: Tensor | None,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        kernel_map: KernelMap,
        scale: Tensor | None,
        shift: Tensor | None,
        slope: float = 0.0,
        *,
        to_input: bool = True,
        to_weight: bool = True,
    ) -> ConvolutionGradients:
        """Compute the requested gradients of a convolution."""
        return convolution.gradients(
            grad, out, grad_sums, x, skip, weight, kernel_map, scale, shift, slope, to_input,
            to_weight, self.products,
        )  # fmt: skip

    def forward_runner(self) -> ForwardProgram:
        """Return a runner that runs all layers in one call of C++."""
        return ForwardProgram(self.products)

    def backward_runner(
        self, saved: Sequence[Tensor], needed: Sequence[bool], /
    ) -> BackwardProgram:
        """Return a runner that computes all gradients in one call of C++."""
        return BackwardProgram(saved, needed, self.products)


FLOAT32 = CpuKernels("cpu", Products.FLOAT32)
BFLOAT16 = CpuKernels("cpu.bf16", Products.BFLOAT16)
