"""Our engine's kernels for NVIDIA GPUs of compute capability 8.0 and up, in Triton.

The functions and their meaning are those of ``backends.sscn.kernels.Kernels``. With
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
from backends.sscn.reference import inverted, take

__all__ = [
    "convolve",
    "fold",
    "fold_gradient",
    "input_gradient",
    "inverted",
    "ordinary_map",
    "sort_sites",
    "statistics_gradient",
    "strided_map",
    "submanifold_map",
    "take",
    "weight_gradient",
]
