"""One autograd function for all deferred layers that some features depend on.

A function per layer would cost more time than many of the layers. Inputs of the function are the
parameters and all other tensors of the layers for which autograd has nodes; its outputs are the
features and their sums. Its backward pass runs the gradients of the layers in reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn.compiling import call_untraced
from backends.sscn.deferred import DeferredGraph, add
from backends.sscn.deferred_layer import (
    BatchNorm,
    DeferredLayer,
    Folding,
    GradientStep,
    Origin,
    Rows,
    ancestors,
    computed,
    features,
    is_deferred,
)


def materialize(rows: Rows, graph: DeferredGraph) -> Tensor:
    """Return features for use outside of the deferred graph, running their layers if necessary.

    If gradients flow through the layers, the features get an autograd node.
    """
    layer = rows.layer
    if layer is None:
        return features(rows)
    run, connect = graph.run, _connect
    if graph.observer is not None:
        run = graph.observer.outside_layers(run)
        connect = graph.observer.outside_layers(connect)
    call_untraced(run, layer)
    if layer.requires_grad and not torch.is_grad_enabled():
        return computed(layer.out)
    if layer.requires_grad:
        layer.out, layer.sums = rows.features, rows.sums = call_untraced(connect, layer, graph)
        # Layers that use this output, recorded before, now start at its autograd node.
        layer.requires_grad, rows.layer = False, None
    return features(rows)


def _connect(last: DeferredLayer, graph: DeferredGraph) -> tuple[Tensor, Tensor | None]:
    """Return the output of a layer and its sums, as outputs of an autograd function."""
    gradient_graph = GradientGraph(last)
    apply: Callable[..., tuple[Tensor, Tensor | None]] = _DeferredLayers.apply
    return apply(graph, gradient_graph, *gradient_graph.leaves)


class GradientGraph:
    """The deferred layers through which gradients flow to some features, with slots for tensors.

    A slot is a number that stands for a tensor. Slots of leaves, the tensors for which autograd has
    nodes, come first; then those of the outputs of the layers. The sums of layer i have slot
    -1 - i.

    Attributes
    ----------
    layers : list of DeferredLayer
        In the order in which they were recorded.
    leaves : list of Tensor
        By slot.
    steps : list of GradientStep
        One per layer.
    """

    def __init__(self, last: DeferredLayer) -> None:
        self.layers = ancestors(last, lambda layer: layer.requires_grad)
        self.leaves: list[Tensor] = []
        self._slots: dict[int, int] = {}
        for layer in self.layers:
            for parameter in layer.parameters():
                self._add_leaf(parameter)
            for origin in layer.inputs():
                if not is_deferred(origin):
                    self._add_leaf(features(origin))
            if isinstance(layer.norm, BatchNorm):
                for origin in layer.sources:
                    if not is_deferred(origin):
                        self._add_leaf(computed(origin.sums))
        self._position = {layer.number: position for position, layer in enumerate(self.layers)}
        self.steps = [self._step(layer) for layer in self.layers]

    def _add_leaf(self, tensor: Tensor) -> None:
        if id(tensor) not in self._slots:
            self._slots[id(tensor)] = len(self.leaves)
            self.leaves.append(tensor)

    def _slot(self, origin: Tensor | Origin) -> int:
        """Return the slot of features or of a parameter."""
        if isinstance(origin, Tensor):
            return self._slots[id(origin)]
        if isinstance(origin, DeferredLayer) and origin.requires_grad:
            return len(self.leaves) + self._position[origin.number]
        return self._slots[id(features(origin))]

    def _sums_slot(self, origin: Origin) -> int:
        if isinstance(origin, DeferredLayer) and origin.requires_grad:
            return -1 - self._position[origin.number]
        return self._slots[id(computed(origin.sums))]

    def _step(self, layer: DeferredLayer) -> GradientStep:
        norm = layer.norm
        weight, *of_norm = map(self._slot, layer.parameters())
        folding: Folding | None = None
        sums: tuple[int, ...] = ()
        if isinstance(norm, BatchNorm):
            folding = norm.folding
            sums = tuple(map(self._sums_slot, layer.sources))
        return GradientStep(
            sources=tuple(map(self._slot, layer.sources)),
            widths=tuple([origin.shape[1] for origin in layer.sources]),
            rows=layer.sources[0].shape[0],
            weight=weight,
            norm=tuple(of_norm),
            folding=folding,
            slope=0.0 if norm is None else norm.slope,
            sums=sums,
            residual=None if layer.residual is None else self._slot(layer.residual),
            out=self._slot(layer),
            out_sums=self._sums_slot(layer),
            shape=layer.shape,
            kernel_map=layer.kernel_map,
            recorder=layer.recorder,
        )


class _DeferredLayers(torch.autograd.Function):
    """From the leaves of a gradient graph to the output of its last layer and its sums."""

    @staticmethod
    def forward(
        ctx: Any, graph: DeferredGraph, gradient_graph: GradientGraph, *leaves: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.steps = graph.kernels, gradient_graph.steps
        ctx.save_for_backward(*leaves, *(layer.out for layer in gradient_graph.layers))
        last = gradient_graph.layers[-1]
        return computed(last.out), last.sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
        saved: Sequence[Tensor] = ctx.saved_tensors
        steps: list[GradientStep] = ctx.steps
        leaves = len(saved) - len(steps)
        needed = (*ctx.needs_input_grad[2:], *(True,) * len(steps))
        last = steps[-1]
        runner = ctx.kernels.backward_runner(saved, needed)
        runner.add_gradient(last.out, grad if grad is None else grad.contiguous())
        runner.add_gradient(last.out_sums, grad_sums)
        for step in reversed(steps):
            add(step, runner, backward=True)
        runner.run()
        found = runner.gradients
        return None, None, *(found.get(slot) if needed[slot] else None for slot in range(leaves))
