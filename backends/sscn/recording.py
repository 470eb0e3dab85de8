"""Layers of a network that are recorded for a plan, and never run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.sscn.deferred import DeferredGraph
from backends.sscn.deferred_layer import BatchNorm, DeferredLayer, InputNorm, Rows
from backends.sscn.kernel_map import KernelMap
from backends.sscn.kernel_set import KernelSet
from backends.sscn.layers import SiteTensor


class Unplannable(Exception):
    """Layers that a plan cannot run, with the reason."""


@dataclass(frozen=True)
class Recording:
    """Layers that were recorded and have not run.

    Attributes
    ----------
    x : SiteTensor
        The input.
    logits : SiteTensor
        The output: a single source, with or without a bias.
    layers : sequence of DeferredLayer
        In the order in which they were recorded.
    """

    x: SiteTensor
    logits: SiteTensor
    layers: Sequence[DeferredLayer]

    @property
    def last(self) -> DeferredLayer:
        """The layer whose rows are the output.

        Raises
        ------
        Unplannable
            If the output is not that of a layer.
        """
        logits = self.logits
        last = logits.unbiased[0].layer
        if logits.norm is not None or len(logits.unbiased) != 1 or logits.level or last is None:
            raise Unplannable("the output is not that of one convolution or linear layer")
        return last

    def running(self, training: bool) -> list[Tensor]:
        """Return the running statistics that a pass changes.

        Raises
        ------
        Unplannable
            If norms are not all in training, or all in evaluation.
        """
        norms = [layer.norm for layer in self.layers if layer.norm is not None]
        if any(isinstance(norm, BatchNorm) != training for norm in norms):
            raise Unplannable("some norms are in training and others are not")
        return [each for norm in norms if isinstance(norm, BatchNorm) for each in norm.running]


class RecordingGraph(DeferredGraph):
    """Records layers without ever running them.

    Attributes
    ----------
    layers : list of DeferredLayer
        The layers, in order.
    conversions : list of (Tensor, Tensor)
        Weights, and the same in another type, which the layers use.
    """

    def __init__(self, kernels: KernelSet) -> None:
        super().__init__(kernels)
        self.layers: list[DeferredLayer] = []
        self.conversions: list[tuple[Tensor, Tensor]] = []

    def converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert the weights of a layer once.

        Raises
        ------
        Unplannable
            If a gradient must reach the weights.
        """
        if torch.is_grad_enabled():
            raise Unplannable(f"weights in training are converted to {dtype}")
        made = weight.detach().to(dtype)
        self.conversions.append((weight, made))
        return made

    def record(
        self,
        sources: tuple[Rows, ...],
        weight: Tensor,
        kernel_map: KernelMap,
        norm: InputNorm,
        residual: Rows | None,
        statistics: bool,
    ) -> Rows:
        """Record a layer, and keep it."""
        rows = super().record(sources, weight, kernel_map, norm, residual, statistics)
        assert rows.layer is not None
        self.layers.append(rows.layer)
        return rows

    def run(self, last: DeferredLayer) -> None:
        """Refuse to run a layer.

        Raises
        ------
        Unplannable
            Always.
        """
        raise Unplannable("something other than a layer reads rows between layers")
