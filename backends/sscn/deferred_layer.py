"""Records of layers whose computation is deferred, and of the rows that they produce.

A layer of the network is called long before it runs. ``DeferredLayer`` holds its arguments until
then and its output afterwards; ``GradientStep`` is the same layer in the backward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from backends.profiling_hooks import LayerRecorder
from backends.sscn.kernel_map import KernelMap


class Rows:
    """Features (N, C) of the sites of a level in Morton order, computed or deferred.

    Attributes
    ----------
    features : Tensor or None
        The values, once they are computed.
    sums : Tensor or None
        (2, C) float64, the sums of the values and of their squares, where a kernel computed them.
    layer : DeferredLayer or None
        The layer that computes the values, as long as they belong to the deferred graph.
    """

    __slots__ = ("__weakref__", "features", "layer", "sums")

    def __init__(self, features: Tensor | None, sums: Tensor | None = None) -> None:
        self.features = features
        self.sums = sums
        self.layer: DeferredLayer | None = None

    @property
    def origin(self) -> Origin:
        """The deferred layer that computes the rows, or the rows themselves."""
        return self.layer or self

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of sites and channels."""
        if self.layer is not None:
            return self.layer.shape
        rows, channels = computed(self.features).shape
        return rows, channels

    @property
    def dtype(self) -> torch.dtype:
        """Storage type."""
        return computed(self.features).dtype if self.layer is None else self.layer.dtype


class Folding(NamedTuple):
    """Batch normalisation folded into a scale and a shift per channel; see ``KernelSet.fold``."""

    scale: Tensor
    shift: Tensor
    moments: Tensor


class BatchNorm:
    """Batch normalisation in training: folded when the first layer that applies it runs.

    Folding also updates the running statistics, in place.

    Parameters
    ----------
    rows : int
        Number of sites.
    weight, bias : Tensor
        (C,), the parameters.
    running : tuple of Tensor
        Running mean and variance, (C,) each.
    eps, momentum : float
        As in ``torch.nn.BatchNorm1d``.
    slope : float
        Factor of negative values after the norm.
    """

    __slots__ = ("bias", "eps", "folding", "momentum", "rows", "running", "slope", "weight")

    def __init__(
        self,
        rows: int,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        eps: float,
        momentum: float,
        slope: float,
    ) -> None:
        self.rows = rows
        self.weight = weight
        self.bias = bias
        self.running = running
        self.eps = eps
        self.momentum = momentum
        self.slope = slope
        self.folding: Folding | None = None

    def set_folding(self, folding: Folding) -> None:
        """Store the result of folding, and mark the running statistics as modified for torch."""
        self.folding = folding
        increment_versions(self.running)


def increment_versions(changed: Sequence[Tensor]) -> None:
    """Mark tensors as modified for torch."""
    try:
        torch.autograd.graph.increment_version(changed)
    except TypeError:  # earlier versions of torch take one tensor per call
        for each in changed:
            torch.autograd.graph.increment_version(each)


class ScaleShift(NamedTuple):
    """Normalisation with given values per channel, and the factor of negative values after it."""

    scale: Tensor
    shift: Tensor
    slope: float


InputNorm: TypeAlias = BatchNorm | ScaleShift | None
"""Normalisation and activation of the input of a layer: of the batch, or with given values."""


def computed(value: Tensor | None) -> Tensor:
    """Return a tensor that must have been computed by now."""
    assert value is not None
    return value


_numbers = itertools.count()


def _no_rows() -> None:
    """Stand for the weak reference to rows that no longer exist."""


class DeferredLayer:
    """A convolution over a kernel map: its arguments and, once it has run, its output.

    Parameters
    ----------
    sources : tuple of Rows
        The input: one source, or two whose channels are concatenated.
    weight : Tensor
        (K, C_in, C_out).
    kernel_map : KernelMap
        Built by the kernel set that will run the layer.
    norm : BatchNorm, ScaleShift or None
        Applied to the input, with its activation.
    residual : Rows or None
        Added to the output.
    statistics : bool
        Whether to compute the sums of the output for the norm that follows.
    recorder : LayerRecorder or None
        Receives the layer's durations while the engine is profiled.

    Attributes
    ----------
    number : int
        Layers in the order in which they were recorded.
    out : Tensor or None
        The output. It may have spare elements and one dimension while only other layers use it.
    sums_in_parts : Tensor or None
        (parts, 2, C) float64, the sums of parts of the rows, until something reads ``sums``.
    rows_reference : callable
        Weak reference to the ``Rows`` that stand for the output; returns None once no caller
        holds them.
    requires_grad : bool
        Whether gradients flow through the layer and autograd has no node for it yet.
    saved : bool
        Whether gradients need the output.
    pending_consumers : int
        Number of recorded layers that use the output and have not run yet.

    Raises
    ------
    ValueError
        If rows, channels or taps do not fit together.
    """

    __slots__ = (
        "_sums", "dtype", "kernel_map", "norm", "number", "out", "pending_consumers", "recorder",
        "requires_grad", "residual", "rows_reference", "saved", "shape", "sources", "statistics",
        "sums_in_parts", "weight",
    )  # fmt: skip

    def __init__(
        self,
        sources: tuple[Rows, ...],
        weight: Tensor,
        kernel_map: KernelMap,
        norm: InputNorm,
        residual: Rows | None,
        statistics: bool,
        recorder: LayerRecorder | None,
    ) -> None:
        taps, inputs, outputs = weight.shape
        rows, channels = sources[0].shape
        kernel_map.check(rows, taps)
        for other in sources[1:]:
            channels += other.shape[1]
        if inputs != channels:
            raise ValueError(f"the weights take {inputs} channels, the input has {channels}")
        self.shape = shape = kernel_map.forward.rows, outputs
        if residual is not None and residual.shape != shape:
            raise ValueError(f"the residual must have shape {shape}, not {residual.shape}")
        self.dtype = sources[0].dtype
        self.sources = tuple([each.origin for each in sources])
        self.weight = weight
        self.kernel_map = kernel_map
        self.norm = norm
        self.residual = None if residual is None else residual.origin
        self.statistics = statistics
        self.recorder = recorder
        self.number = next(_numbers)
        self.out: Tensor | None = None
        self.sums = None
        self.rows_reference: Callable[[], Rows | None] = _no_rows
        self.requires_grad = self.saved = torch.is_grad_enabled() and self._needs_gradient()
        self.pending_consumers = 0
        for origin in self.inputs():
            if isinstance(origin, DeferredLayer):
                origin.pending_consumers += 1
                origin.saved = origin.saved or self.requires_grad

    @property
    def sums(self) -> Tensor | None:
        """The sums of the output and of its squares, (2, C) float64."""
        if self.sums_in_parts is not None:
            self.sums = self.sums_in_parts.sum(0)
        return self._sums

    @sums.setter
    def sums(self, sums: Tensor | None) -> None:
        self._sums = sums
        self.sums_in_parts: Tensor | None = None

    def _needs_gradient(self) -> bool:
        return any(each.requires_grad for each in self.parameters()) or any(
            map(_needs_gradient, self.inputs())
        )

    def inputs(self) -> tuple[Origin, ...]:
        """Return the sources and, if there is one, the residual."""
        return self.sources if self.residual is None else (*self.sources, self.residual)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the weights, followed by the parameters of the norm or its scale and shift."""
        norm = self.norm
        if norm is None:
            return (self.weight,)
        if isinstance(norm, BatchNorm):
            return self.weight, norm.weight, norm.bias
        return self.weight, norm.scale, norm.shift

    def reset(self) -> None:
        """Discard what a failed run has left behind."""
        self.out = self.sums = None
        if isinstance(self.norm, BatchNorm):
            self.norm.folding = None

    def retained(self) -> bool:
        """Return whether the output is needed even after all recorded consumers have run."""
        return self.saved or self.rows_reference() is not None

    def consumed(self) -> bool:
        """Count one consumer as run; return whether the output can be released."""
        self.pending_consumers -= 1
        return not (self.pending_consumers or self.retained())


Origin: TypeAlias = Rows | DeferredLayer
"""An input of a deferred layer: computed rows, or the layer that computes them."""


def is_deferred(origin: Origin) -> bool:
    """Return whether gradients flow through a layer for which autograd has no node yet."""
    return isinstance(origin, DeferredLayer) and origin.requires_grad


def _needs_gradient(origin: Origin) -> bool:
    if is_deferred(origin):
        return True
    values = origin.out if isinstance(origin, DeferredLayer) else origin.features
    return values is not None and values.requires_grad


def features(origin: Origin) -> Tensor:
    """Return the values of computed rows, or the output of a layer that has run."""
    return computed(origin.out if isinstance(origin, DeferredLayer) else origin.features)


def sums_in_parts(origin: Origin) -> Tensor:
    """Return the sums of an input, in parts if a kernel has computed them so."""
    parts = origin.sums_in_parts if isinstance(origin, DeferredLayer) else None
    return computed(origin.sums) if parts is None else parts


def ancestors(last: DeferredLayer, include: Callable[[DeferredLayer], bool]) -> list[DeferredLayer]:
    """Return a layer and the layers that it depends on, ending at layers that are not included.

    They are in the order in which they were recorded, so that each follows its inputs.
    """
    if not include(last):
        return []
    found = {last.number: last}
    todo = [last]
    while todo:
        for origin in todo.pop().inputs():
            if isinstance(origin, DeferredLayer) and origin.number not in found and include(origin):
                found[origin.number] = origin
                todo.append(origin)
    return [found[number] for number in sorted(found)]


class GradientStep(NamedTuple):
    """A layer in the backward pass. Its tensors are given as slots, numbers that stand for tensors.

    Attributes
    ----------
    sources : tuple of int
        Slots of the inputs.
    widths : tuple of int
        Channels of each source.
    rows : int
        Number of input rows.
    weight : int
        Slot of the weights.
    norm : tuple of int
        Slots of the norm's weight and bias, or of scale and shift; empty without a norm.
    folding : Folding or None
        The folded norm of the batch, if the norm is one.
    slope : float
        Factor of negative values after the norm.
    sums : tuple of int
        Slots of the sums of each source, if the norm is one of the batch.
    residual : int or None
        Slot of the residual.
    out, out_sums : int
        Slots of the output and of its sums; slots of sums of deferred layers are negative.
    shape : tuple of int
        Rows and channels of the output.
    kernel_map : KernelMap
        As in the layer.
    recorder : LayerRecorder or None
        As in the layer.
    """

    sources: tuple[int, ...]
    widths: tuple[int, ...]
    rows: int
    weight: int
    norm: tuple[int, ...]
    folding: Folding | None
    slope: float
    sums: tuple[int, ...]
    residual: int | None
    out: int
    out_sums: int
    shape: tuple[int, int]
    kernel_map: KernelMap
    recorder: LayerRecorder | None

    def needs_input_gradient(self, needed: Sequence[bool]) -> bool:
        """Return whether a gradient is needed at the sources or at the norm, given by slot."""
        return any(needed[slot] for slot in (*self.sources, *self.sums, *self.norm))
