"""Runners of a plan, which has all layers at hand: one launch does the work of several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn.cuda.blocks import ROWS_TOGETHER
from backends.sscn.cuda.convolution import convolve_in_parts
from backends.sscn.cuda.gradient import Product, list_maps, weight_gradients
from backends.sscn.cuda.norm import Following
from backends.sscn.deferred_layer import BatchNorm, DeferredLayer, GradientStep
from backends.sscn.kernel_set import KernelSet
from backends.sscn.layerwise import LayerwiseBackward, LayerwiseForward, LayerwiseKernelSet


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


class LaunchedBackward(LayerwiseBackward):
    """Computes gradients, the weight gradients of consecutive layers on the same map together.

    Parameters
    ----------
    kernels : LayerwiseKernelSet
        The ``cuda`` kernel set.
    saved, needed
        As in ``KernelSet.backward_runner``.
    steps : sequence of GradientStep
        All steps.
    master : torch.dtype or None
        The type of weight gradients, if it is not that of the rows.
    """

    def __init__(
        self,
        kernels: LayerwiseKernelSet,
        saved: Sequence[Tensor],
        needed: Sequence[bool],
        steps: Sequence[GradientStep],
        master: torch.dtype | None,
    ) -> None:
        super().__init__(kernels, saved, needed)
        self._master = master
        self._waiting: list[tuple[int, Product]] = []
        maps = [step.kernel_map.forward for step in steps if needed[step.weight]]
        tables = {id(each.tensors[0]): each.tensors[0] for each in maps if each.tensors}
        list_maps([*tables.values()])

    def multiply(self, slot: int, *arguments: Any) -> None:
        """Compute a weight gradient together with those of the next layers on its map."""
        product = Product(*arguments)
        gather_map = product.gather_map
        if not gather_map.tensors or gather_map.rows > ROWS_TOGETHER:
            self._compute([(slot, product)])
            return
        if self._waiting and self._waiting[0][1].gather_map is not gather_map:
            self.run()
        self._waiting.append((slot, product))

    def run(self) -> None:
        """Compute the weight gradients that wait for others."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._compute(waiting)

    def _compute(self, products_of_slots: Sequence[tuple[int, Product]]) -> None:
        slots, products = zip(*products_of_slots, strict=True)
        self._add_gradients(slots, weight_gradients(products[0].x, products, self._master))
