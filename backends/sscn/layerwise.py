"""Base of kernel sets that run one layer at a time: ``reference`` and ``cuda``."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn.deferred_layer import BatchNorm, DeferredLayer, Folding, GradientStep, features
from backends.sscn.kernel_map import GatherMap, KernelMap
from backends.sscn.kernel_set import ConvolutionGradients, IntervalCallback, KernelSet


class LayerwiseKernelSet(KernelSet):
    """A kernel set whose runners call ``convolve`` and the gradients of one layer at a time."""

    @abstractmethod
    def input_gradient(
        self,
        grad: Tensor,
        weight: Tensor,
        gather_map: GatherMap,
        mirrored: bool,
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        slope: float = 0.0,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Propagate the gradient of the output to the input over the backward map.

        Let g be the gradient of ``scale * x + shift``: the convolved gradient, multiplied by
        ``slope`` where the normalised input is not positive. Without a norm, g is the convolved
        gradient.

        Returns
        -------
        to_x, to_skip : Tensor
            Gradients of the two sources, ``scale * g`` (g without a norm); ``to_skip`` is (0,)
            without ``skip``.
        to_norm : Tensor
            (2, C_in) float64: the gradients of ``scale`` (sum of g * x) and of ``shift`` (sum of
            g); (0,) without a norm.
        """

    def input_gradient_through_norm(
        self,
        grad: Tensor,
        weight: Tensor,
        gather_map: GatherMap,
        mirrored: bool,
        x: Tensor,
        skip: Tensor | None,
        folding: Folding,
        norm_weight: Tensor,
        slope: float,
        /,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Propagate like ``input_gradient``, and then through the norm of the batch.

        Returns
        -------
        to_x, to_skip : Tensor
            As from ``input_gradient``.
        of_norm : tuple of Tensor
            As from ``fold_gradient``.
        """
        to_x, to_skip, to_norm = self.input_gradient(
            grad, weight, gather_map, mirrored, x, skip, folding.scale, folding.shift, slope
        )
        of_norm = self.fold_gradient(to_norm, norm_weight, folding.moments, gather_map.rows)
        return to_x, to_skip, of_norm

    @abstractmethod
    def weight_gradient(
        self,
        x: Tensor,
        skip: Tensor | None,
        grad: Tensor,
        gather_map: GatherMap,
        scale: Tensor | None,
        shift: Tensor | None,
        slope: float = 0.0,
        /,
    ) -> Tensor:
        """Return the gradient of the weights, (K, C_in, C_out), over the forward map."""

    @abstractmethod
    def statistics_gradient(self, grad: Tensor, out: Tensor, grad_sums: Tensor, /) -> Tensor:
        """Return the gradient of ``out`` with the parts through the sums of it and its squares.

        It is ``grad + grad_sums[0] + 2 * out * grad_sums[1]``.
        """

    def total_gradient(
        self, grads: Sequence[Tensor], out: Tensor, grad_sums: Sequence[Tensor], /
    ) -> Tensor:
        """Add gradients of ``out``, and those through its sums as in ``statistics_gradient``."""
        return self.statistics_gradient(added(grads), out, added(grad_sums))

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
        """Compute the requested gradients one after the other."""
        forward, backward, mirrored = kernel_map
        total = to_x = to_skip = to_norm = weights = None
        if grad_sums is not None:
            assert out is not None
            grad = total = self.statistics_gradient(grad, out, grad_sums)
        if to_input:
            to_x, to_skip, to_norm = self.input_gradient(
                grad, weight, backward, mirrored, x, skip, scale, shift, slope
            )
        if to_weight:
            weights = self.weight_gradient(x, skip, grad, forward, scale, shift, slope)
        return ConvolutionGradients(to_x, to_skip, to_norm, weights, total)

    def forward_runner(self) -> LayerwiseForward:
        """Return a runner that runs each layer when it is added."""
        return LayerwiseForward(self)

    def backward_runner(
        self, saved: Sequence[Tensor], needed: Sequence[bool], /
    ) -> LayerwiseBackward:
        """Return a runner that computes the gradients of each layer when its step is added."""
        return LayerwiseBackward(self, saved, needed)


def added(gradients: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one gradient, added in their order."""
    total, *others = gradients
    for other in others:
        total = total + other
    return total


class LayerwiseForward:
    """Runs each layer when it is added, with the functions of any kernel set."""

    def __init__(self, kernels: KernelSet) -> None:
        self._kernels = kernels
        self._begin = 0.0

    def add(self, layer: DeferredLayer) -> None:
        """Run a layer, and release the inputs that no other layer needs."""
        self._begin = time.perf_counter()
        sources = [features(origin) for origin in layer.sources]
        norm = layer.norm
        scale = shift = None
        slope = 0.0
        if isinstance(norm, BatchNorm):
            scale, shift, _ = self._kernels.fold_norm(norm, layer.sources)
            slope = norm.slope
        elif norm is not None:
            scale, shift, slope = norm
        with torch.no_grad():
            layer.out, parts = self.convolution(layer)(
                sources[0], sources[1] if len(sources) > 1 else None, layer.weight,
                layer.kernel_map.forward, scale, shift,
                None if layer.residual is None else features(layer.residual), layer.statistics,
                slope,
            )  # fmt: skip
        layer.sums_in_parts = parts if layer.statistics else None
        for origin in layer.inputs():
            if isinstance(origin, DeferredLayer) and origin.consumed():
                origin.out = origin.sums = None

    def convolution(self, layer: DeferredLayer) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the function that convolves a layer, as ``KernelSet.convolve_in_parts`` does."""
        return self._kernels.convolve_in_parts

    def report(self, callback: IntervalCallback) -> None:
        """Report the interval of the most recently added layer."""
        callback(self._begin, time.perf_counter())

    def run(self) -> None:
        """Do nothing: all layers have run."""


class LayerwiseBackward:
    """Computes the gradients of each layer when its step is added, with any kernel set.

    Parameters
    ----------
    kernels : LayerwiseKernelSet
        The kernel set.
    saved, needed
        As in ``KernelSet.backward_runner``.
    """

    def __init__(
        self, kernels: LayerwiseKernelSet, saved: Sequence[Tensor], needed: Sequence[bool]
    ) -> None:
        self._kernels = kernels
        self._saved = saved
        self._needed = needed
        self._begin = 0.0
        self._gradients: defaultdict[int, list[Tensor]] = defaultdict(list)

    @property
    def gradients(self) -> dict[int, Tensor]:
        """The gradients of leaves by slot."""
        return {slot: added(found) for slot, found in self._gradients.items()}

    def add_gradient(self, slot: int, gradient: Tensor | None) -> None:
        """Add to the gradient of a slot."""
        if gradient is not None:
            self._gradients[slot].append(gradient)

    def add(self, step: GradientStep) -> None:
        """Compute the gradients of one layer and add them to those of its inputs."""
        self._begin = time.perf_counter()
        saved, folding = self._saved, step.folding
        grads = self._gradients.pop(step.out, [])
        grad_sums = self._gradients.pop(step.out_sums, [])
        if not grads and not grad_sums:
            return
        grads = grads or [torch.zeros_like(saved[step.out])]
        if grad_sums:
            grad = self._kernels.total_gradient(grads, saved[step.out], grad_sums)
        else:
            grad = added(grads)
        forward, backward, mirrored = step.kernel_map
        sources = [saved[slot] for slot in step.sources]
        x, skip = sources[0], sources[1] if len(sources) > 1 else None
        scale = shift = None
        if folding is not None:
            scale, shift, _ = folding
        elif step.norm:
            scale, shift = (saved[slot] for slot in step.norm)
        if step.needs_input_gradient(self._needed):
            arguments = grad, saved[step.weight], backward, mirrored, x, skip
            of_norm: Sequence[Tensor] = ()
            if folding is not None:
                to_x, to_skip, (to_sums, *of_norm) = self._kernels.input_gradient_through_norm(
                    *arguments, folding, saved[step.norm[0]], step.slope
                )
                shares = to_sums.split_with_sizes(list(step.widths), 1)
                self._add_gradients(step.sums, shares)
            else:
                to_x, to_skip, to_norm = self._kernels.input_gradient(
                    *arguments, scale, shift, step.slope
                )
                if step.norm:
                    of_norm = to_norm.to(saved[step.norm[0]].dtype).unbind(0)
            self._add_gradients(step.sources, (to_x, to_skip)[: len(sources)])
            self._add_gradients(step.norm, of_norm)
        if self._needed[step.weight]:
            self.multiply(step.weight, x, skip, grad, forward, scale, shift, step.slope)
        if step.residual is not None:
            self.add_gradient(step.residual, grad)

    def multiply(self, slot: int, *arguments: Any) -> None:
        """Add the weight gradient of a layer to that of a slot.

        Parameters
        ----------
        slot : int
            That of the weights.
        *arguments
            As for ``LayerwiseKernelSet.weight_gradient``.
        """
        self.add_gradient(slot, self._kernels.weight_gradient(*arguments))

    def _add_gradients(self, slots: Sequence[int], gradients: Sequence[Tensor]) -> None:
        for slot, gradient in zip(slots, gradients, strict=True):
            self.add_gradient(slot, gradient)

    def report(self, callback: IntervalCallback) -> None:
        """Report the interval of the most recently added step."""
        callback(self._begin, time.perf_counter())

    def run(self) -> None:
        """Do nothing: all gradients are computed."""
