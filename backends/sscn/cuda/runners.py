"""Runners of a plan, which has all layers at hand: one launch does the work of several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from backends.sscn.cuda.convolution import convolve_in_parts
from backends.sscn.cuda.norm import Following
from backends.sscn.deferred_layer import BatchNorm, DeferredLayer
from backends.sscn.kernel_set import KernelSet
from backends.sscn.layerwise import LayerwiseForward


class LaunchedForward(LayerwiseForward):
    """Runs layers whose convolutions also fold the norms that follow them.

    Parameters
    ----------
    kernels : KernelSet
        The ``cuda`` kernel set.
    layers : sequence of DeferredLayer
        All layers, in the order in which they will be added.
    """

    def __init__(self, kernels: KernelSet, layers: Sequence[DeferredLayer]) -> None:
        super().__init__(kernels)
        self._following: dict[int, DeferredLayer] = {}
        for layer in layers:
            sources = [each for each in layer.sources if isinstance(each, DeferredLayer)]
            if isinstance(layer.norm, BatchNorm) and len(sources) == len(layer.sources):
                last = max(each.number for each in sources)
                self._following.setdefault(last, layer)

    def convolution(self, layer: DeferredLayer) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return ``convolve_in_parts``, which also folds the norm that follows a layer."""
        following = self._following.get(layer.number)
        if following is None:
            return super().convolution(layer)
        norm = following.norm
        assert isinstance(norm, BatchNorm)
        sums = [
            each.sums_in_parts if isinstance(each, DeferredLayer) else None
            for each in following.sources
        ]
        return functools.partial(convolve_in_parts, following=Following(norm, sums))
