"""The ``cuda`` kernel set: Triton kernels for NVIDIA GPUs of compute capability 8.0 or higher.

The functions are those of ``backends.sscn.kernel_set.KernelSet``. If ``TRITON_INTERPRET=1`` is set
in the environment before the first import of Triton, the kernels run on the CPU, slowly, for tests.

The host synchronises with the device only to read sizes: once in ``sort_sites``, which checks the
sites and counts those of every coarser level in the same transfer, and once in ``ordinary_map``.
``strided_map`` and ``network_maps`` synchronise only for keys that none of these has returned.
"""

from collections.abc import Sequence

from torch import Tensor

from backends.sscn.cuda.convolution import (
    convolve,
    convolve_in_parts,
    input_gradient,
    input_gradient_through_norm,
)
from backends.sscn.cuda.gradient import statistics_gradient, total_gradient, weight_gradient
from backends.sscn.cuda.maps import (
    inverted,
    network_maps,
    ordinary_map,
    sort_sites,
    strided_map,
    submanifold_map,
)
from backends.sscn.cuda.norm import fold, fold_gradient, fold_norm
from backends.sscn.deferred_layer import BatchNorm, Folding, Origin, sums_in_parts
from backends.sscn.layerwise import LayerwiseKernelSet
from backends.sscn.reference import take

__all__ = ["CUDA", "CudaKernels"]


class CudaKernels(LayerwiseKernelSet):
    """The functions of this package as a kernel set."""

    name = "cuda"
    sort_sites = staticmethod(sort_sites)
    submanifold_map = staticmethod(submanifold_map)
    strided_map = staticmethod(strided_map)
    builds_network_maps = True
    network_maps = staticmethod(network_maps)
    ordinary_map = staticmethod(ordinary_map)
    convolve = staticmethod(convolve)
    convolve_in_parts = staticmethod(convolve_in_parts)
    input_gradient = staticmethod(input_gradient)
    input_gradient_through_norm = staticmethod(input_gradient_through_norm)
    weight_gradient = staticmethod(weight_gradient)
    statistics_gradient = staticmethod(statistics_gradient)
    fold = staticmethod(fold)
    fold_gradient = staticmethod(fold_gradient)
    inverted = staticmethod(inverted)
    take = staticmethod(take)

    def total_gradient(
        self, grads: Sequence[Tensor], out: Tensor, grad_sums: Sequence[Tensor], /
    ) -> Tensor:
        """Add gradients of ``out``, and those through its sums, in one launch."""
        return total_gradient(grads[0], grads[1:], out, grad_sums)

    def fold_norm(self, norm: BatchNorm, sources: Sequence[Origin]) -> Folding:
        """Return the folded norm of a batch; one kernel adds the sums of all tiles and folds."""
        return norm.folding or fold_norm(norm, [sums_in_parts(origin) for origin in sources])


CUDA = CudaKernels()
