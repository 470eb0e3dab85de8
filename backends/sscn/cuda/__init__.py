"""The ``cuda`` kernel set: Triton kernels for NVIDIA GPUs of compute capability 8.0 or higher.

The functions are those of ``backends.sscn.kernel_set.KernelSet``. If ``TRITON_INTERPRET=1`` is set
in the environment before the first import of Triton, the kernels run on the CPU, slowly, for tests.

The host synchronises with the device only to read sizes: once in ``sort_sites``, which checks the
sites and counts those of every coarser level in the same transfer, and once in ``ordinary_map``.
``strided_map`` and ``network_maps`` synchronise only for keys that none of these has returned.
"""

from backends.sscn.cuda.convolution import convolve, input_gradient
from backends.sscn.cuda.gradient import statistics_gradient, weight_gradient
from backends.sscn.cuda.maps import (
    network_maps,
    ordinary_map,
    sort_sites,
    strided_map,
    submanifold_map,
)
from backends.sscn.cuda.norm import fold, fold_gradient
from backends.sscn.layerwise import LayerwiseKernelSet
from backends.sscn.reference import inverted, take

__all__ = ["CUDA", "CudaKernels"]


class CudaKernels(LayerwiseKernelSet):
    """The functions of this package as a kernel set."""

    name = "cuda"
    sort_sites = staticmethod(sort_sites)
    submanifold_map = staticmethod(submanifold_map)
    strided_map = staticmethod(strided_map)
    network_maps = staticmethod(network_maps)
    ordinary_map = staticmethod(ordinary_map)
    convolve = staticmethod(convolve)
    input_gradient = staticmethod(input_gradient)
    weight_gradient = staticmethod(weight_gradient)
    statistics_gradient = staticmethod(statistics_gradient)
    fold = staticmethod(fold)
    fold_gradient = staticmethod(fold_gradient)
    inverted = staticmethod(inverted)
    take = staticmethod(take)


CUDA = CudaKernels()
