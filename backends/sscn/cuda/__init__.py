"""Our engine's kernels for NVIDIA GPUs of compute capability 8.0 and up, in Triton.

The functions and their meaning are those of ``backends.sscn.kernel_set.KernelSet``. With
``TRITON_INTERPRET=1`` in the environment before the first import of Triton, all of it runs on the
CPU, slowly, for tests.

The host waits for the device only where a size must be known: once in ``sort_sites``, which
checks the sites and counts those of every coarser level in the same transfer, and in
``ordinary_map``. ``strided_map`` of keys that did not come from here waits once as well.
"""

from backends.sscn.cuda.convolution import convolve, input_gradient
from backends.sscn.cuda.gradient import statistics_gradient, weight_gradient
from backends.sscn.cuda.maps import ordinary_map, sort_sites, strided_map, submanifold_map
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
