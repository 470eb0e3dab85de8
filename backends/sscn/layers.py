"""Tensors and layers of the engine: calls are recorded, so that kernels can fuse them.

A convolution runs with the operations around it in one kernel: normalisation, activation
and concatenation are applied while its input is gathered, and a residual is added to its result
before that is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from backends.contract import Kind
from backends.sscn.autograd_function import materialize
from backends.sscn.compiling import traceable
from backends.sscn.convolution import convolve
from backends.sscn.coordinates import CoordinateManager
from backends.sscn.deferred import DeferredGraph
from backends.sscn.deferred_layer import BatchNorm, InputNorm, Rows, ScaleShift
from backends.sscn.kernel_map import KernelMap, identity
from backends.sscn.kernel_set import KernelSet
from backends.sscn.norm import Norm, differentiable


class SiteTensor:
    """Features on the sites of one level, computed or deferred.

    The features are one of two things. Either ``rows``: one or two sources, whose channels are
    concatenated and, with a ``norm``, passed through leaky(scale * x + shift). Or ``pending``: a
    convolution that is not recorded yet, because a residual may still be added to it. With a
    ``bias``, the bias is to be added to a single source.
    """

    __slots__ = ("_rows", "bias", "coordinates", "level", "norm", "pending")

    def __init__(
        self,
        coordinates: CoordinateManager,
        level: int,
        rows: tuple[Rows, ...] = (),
        norm: InputNorm = None,
        pending: Callable[[Rows | None], Rows] | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.coordinates = coordinates
        self.level = level
        self.norm = norm
        self.pending = pending
        self.bias = bias
        self._rows = rows

    @property
    def unbiased(self) -> tuple[Rows, ...]:
        """The sources without the bias; a pending convolution is recorded now."""
        if self.pending is not None:
            self._rows = (self.pending(None),)
            self.pending = None
        return self._rows

    @property
    def rows(self) -> tuple[Rows, ...]:
        """The sources, with the bias added."""
        if self.bias is not None:
            values = materialize(self.unbiased[0], self.coordinates.graph)
            self._rows, self.bias = (Rows(values + self.bias),), None
        return self.unbiased


_Take: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _Reorder(torch.autograd.Function):
    """Put rows in another order; the gradient uses the inverse order, faster than a scatter."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, bias: Tensor | None, order: Tensor, inverse: Tensor, take: _Take
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.take = take
        return take(rows, order, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (inverse,) = ctx.saved_tensors
        to_bias = grad.sum(0) if ctx.needs_input_grad[1] else None
        return ctx.take(grad, inverse, None), to_bias, None, None, None


def reordered(
    rows: Tensor, bias: Tensor | None, order: Tensor, inverse: Tensor, kernels: KernelSet
) -> Tensor:
    """Return rows in another order, with a bias added to each, and with an autograd node."""
    take = traceable(kernels).take
    requires_grad = rows.requires_grad or (bias is not None and bias.requires_grad)
    if not (requires_grad and torch.is_grad_enabled()):
        return take(rows, order, bias)
    apply: Callable[..., Tensor] = _Reorder.apply
    return apply(rows, bias, order, inverse, take)


class _KernelMapLayer(nn.Module):
    """Base of convolutions and linear layers: weights that are applied over a kernel map."""

    def __init__(self, taps: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, in_channels, out_channels))

    def launch(self, x: SiteTensor, kernel_map: KernelMap, level: int) -> SiteTensor:
        """Return a tensor whose convolution is pending."""
        sources, norm, graph = x.rows, x.norm, x.coordinates.graph

        def compute(residual: Rows | None) -> Rows:
            weight: Tensor = self.weight
            storage = sources[0].dtype
            if weight.dtype is not storage:
                weight = graph.converted(weight, storage)
            if torch.compiler.is_compiling():
                return _run_operator(
                    graph, sources, weight, kernel_map, norm, residual, self.training
                )
            return graph.record(sources, weight, kernel_map, norm, residual, self.training)

        pending: Callable[[Rows | None], Rows] = compute
        if graph.observer is not None:
            pending = graph.observer.deferred(compute)
        return SiteTensor(x.coordinates, level, pending=pending)


# A global is faster than a member of an enumeration.
_SUBMANIFOLD, _STRIDED, _INVERSE = Kind.SUBMANIFOLD, Kind.STRIDED, Kind.INVERSE


class Convolution(_KernelMapLayer):
    """A convolution of any kind."""

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, dim: int
    ) -> None:
        super().__init__(kernel_size**dim, in_channels, out_channels)
        self.kind = kind
        self.kernel_size = kernel_size

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Convolve; the kind determines the sites of the output."""
        coordinates, level, kind = x.coordinates, x.level, self.kind
        if kind is _SUBMANIFOLD:
            return self.launch(x, coordinates.submanifold(level, self.kernel_size), level)
        if kind is _STRIDED:
            return self.launch(x, coordinates.down(level), level + 1)
        if kind is _INVERSE:
            return self.launch(x, coordinates.down(level - 1).transposed(), level - 1)
        reached, kernel_map = coordinates.ordinary(level, self.kernel_size)
        out = self.launch(x, kernel_map, 0)
        out.coordinates = reached
        return out


class Linear(_KernelMapLayer):
    """The same matrix at every site."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(1, in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Multiply the rows."""
        rows = x.coordinates.rows(x.level)
        out = self.launch(x, identity(rows), x.level)
        out.bias = self.bias
        return out


class DeferredNorm(Norm):
    """Batch normalisation and leaky ReLU that the next convolution applies to its input."""

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Attach the norm to the tensor."""
        x = without_norm(x)
        sources = x.rows
        if not self.training:
            return SiteTensor(x.coordinates, x.level, sources, self.from_running())
        for rows in sources:
            _ensure_sums(rows, x.coordinates.graph)
        return SiteTensor(x.coordinates, x.level, sources, self.from_batch(sources))


def _run_operator(
    graph: DeferredGraph,
    sources: tuple[Rows, ...],
    weight: Tensor,
    kernel_map: KernelMap,
    norm: InputNorm,
    residual: Rows | None,
    statistics: bool,
) -> Rows:
    """Run a layer now, with the operator into which ``torch.compile`` does not trace."""
    features = [materialize(rows, graph) for rows in sources]
    applied = _scale_and_shift(norm, sources, graph)
    scale, shift, slope = applied or (None, None, 0.0)
    out, sums = convolve(
        features[0], features[1] if len(features) > 1 else None, weight, kernel_map, scale, shift,
        None if residual is None else materialize(residual, graph),
        statistics=statistics, slope=slope, kernel_set=graph.kernels.name,
    )  # fmt: skip
    return Rows(out, sums if statistics else None)


def _scale_and_shift(
    norm: InputNorm, sources: tuple[Rows, ...], graph: DeferredGraph
) -> ScaleShift | None:
    """Return scale and shift of a norm, with autograd nodes."""
    if not isinstance(norm, BatchNorm):
        return norm
    for rows in sources:
        materialize(rows, graph)
    return ScaleShift(*differentiable(norm, sources, graph.kernels), norm.slope)


def _ensure_sums(rows: Rows, graph: DeferredGraph) -> None:
    """Compute the sums of rows and of their squares, unless a kernel computes them."""
    if rows.layer is not None and rows.layer.statistics:
        return
    values = materialize(rows, graph)
    detached = rows.sums is not None and not rows.sums.requires_grad
    if rows.sums is None or (detached and values.requires_grad and torch.is_grad_enabled()):
        exact = values.double()
        rows.sums = torch.stack([exact.sum(0), exact.square().sum(0)])


def without_norm(x: SiteTensor) -> SiteTensor:
    """Return a tensor whose norm has been applied, for operations that do not gather."""
    if x.norm is None:  # a bias may remain; the caller adds it
        return x
    graph = x.coordinates.graph
    norm = _scale_and_shift(x.norm, x.rows, graph)
    assert norm is not None
    features = leaky_relu(joined(x.rows, graph) * norm.scale + norm.shift, norm.slope)
    features = features.to(x.rows[0].dtype)
    return SiteTensor(x.coordinates, x.level, (Rows(features),))


def joined(sources: tuple[Rows, ...], graph: DeferredGraph) -> Tensor:
    """Return the channels of all sources as one tensor for use outside of the deferred graph."""
    features = [materialize(rows, graph) for rows in sources]
    return features[0] if len(features) == 1 else torch.cat(features, 1)
