"""SPINE's layers, with the parameters of MinkowskiEngine and the arithmetic of any engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.contract import Kind, NormConfig, Unsupported
from backends.spine.coordinates import CoordinateMap, lookup
from backends.spine.engine import BoundLayer, Engine
from backends.spine.tensor import SparseTensor

Size = int | Sequence[int]


class Layer(nn.Module):
    """Base of SPINE's layers. Layers of the engine are made at their first use, outside the state.

    SPINE knows neither the level nor the precision of a layer when it creates it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bound: dict[Any, BoundLayer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_bound": {}}


def one_value(name: str, size: Size, dimension: int) -> int:
    """Return a size that is the same along every axis.

    Raises
    ------
    Unsupported
        If it differs.
    """
    if isinstance(size, int):
        return size
    axes = [int(each) for each in size]
    if len(axes) != dimension or len(set(axes)) != 1:
        raise Unsupported(f"this backend has no {name} {axes} that differs between axes")
    return axes[0]


class _Convolution(Layer):
    """A convolution or transposed convolution with MinkowskiEngine's kernel and bias."""

    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = -1,
        stride: Size = 1,
        dilation: Size = 1,
        bias: bool = False,
        kernel_generator: Any = None,
        expand_coordinates: bool = False,
        convolution_mode: Any = None,
        dimension: int | None = None,
    ) -> None:
        super().__init__()
        if dimension is None or dimension < 1:
            raise ValueError(f"a sparse convolution needs its dimension, not {dimension}")
        if kernel_generator is not None:
            raise Unsupported("this backend has no kernel generators")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dimension = dimension
        self.kernel_size = one_value("kernel size", kernel_size, dimension)
        self.stride = one_value("stride", stride, dimension)
        self.kind = self._kind(one_value("dilation", dilation, dimension), expand_coordinates)
        volume = self.kernel_size**dimension
        shape: tuple[int, ...] = (in_channels, out_channels)
        if volume > 1 or self.stride > 1:
            shape = (volume, *shape)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()
        self._converted: tuple[Any, Tensor] | None = None

    def _kind(self, dilation: int, expand_coordinates: bool) -> Kind:
        """Return the contract's kind of this convolution."""
        kernel, stride = self.kernel_size, self.stride
        if dilation == 1 and not expand_coordinates:
            if (kernel, stride) == (1, 1):
                return Kind.LINEAR
            if self.transposed:
                if (kernel, stride) == (2, 2):
                    return Kind.INVERSE
            elif stride == 1 and kernel > 0 and kernel % 2:
                return Kind.SUBMANIFOLD
            elif stride == 2 and kernel in (1, 2):
                return Kind.STRIDED
        name = "transposed convolution" if self.transposed else "convolution"
        raise Unsupported(
            f"this backend has no {name} with kernel {kernel}, stride {stride}, dilation {dilation}"
            + (" and expanded coordinates" if expand_coordinates else "")
        )

    def reset_parameters(self) -> None:
        """Draw the parameters as MinkowskiEngine does, in the same order."""
        channels = self.out_channels if self.transposed else self.in_channels
        bound = 1 / math.sqrt(channels * self.kernel_size**self.dimension)
        nn.init.uniform_(self.kernel, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _native_weight(self, engine: Engine, shape: torch.Size) -> Tensor:
        """Return the kernel in the engine's layout; without gradients, it is converted once."""
        kernel: Tensor = self.kernel
        differentiable = torch.is_grad_enabled() and kernel.requires_grad
        state = (engine, kernel.data_ptr(), kernel._version)
        if not differentiable and self._converted is not None and self._converted[0] == state:
            return self._converted[1]
        if self.kernel_size == 1 and self.kind is Kind.STRIDED:
            other_taps = kernel.new_zeros(2**self.dimension - 1, *kernel.shape[1:])
            kernel = torch.cat([kernel, other_taps])
        if self.kind is Kind.LINEAR:
            native = engine.backend.to_native(self.kind, kernel.t())
        else:
            native = engine.native_kernel(self.kind, kernel)
        native = native.reshape(shape).contiguous()
        if native.data_ptr() == self.kernel.data_ptr() and not differentiable:
            native = native.detach()
        self._converted = None if differentiable else (state, native)
        return native

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_converted": None}

    def forward(self, x: SparseTensor, coordinates: Any = None) -> SparseTensor:
        """Convolve."""
        if coordinates is not None:
            raise Unsupported("this backend has no convolution to given coordinates")
        if self.kind is Kind.INVERSE:
            x, target = _before_inverse(x)
        else:
            target = None
        engine, placed = x.placed
        at = x.at
        level = at.level - 1 if self.kind is Kind.INVERSE else at.level
        if self.kind is Kind.STRIDED:
            at.check_divisible()
        bound = self._bound.get((engine, level))
        if bound is None:
            bound = self._bound[engine, level] = self._bind(engine, level)
        bound.bind("weight", self._native_weight(engine, bound.shapes["weight"]))
        out = bound(placed, self.training)
        if self.kind is Kind.STRIDED:
            target = at.coarser(engine, out)
        result = SparseTensor(target or at, placed=(engine, out))
        return result if self.bias is None else result.with_rows(result.features + self.bias)

    def _bind(self, engine: Engine, level: int) -> BoundLayer:
        backend = engine.backend
        if self.kind is Kind.LINEAR:
            layer = backend.linear(self.in_channels, self.out_channels, False)
        else:
            size = 2 if self.kind is Kind.STRIDED else self.kernel_size
            layer = backend.convolution(self.kind, self.in_channels, self.out_channels, size, level)
        return BoundLayer(engine, layer)

    def extra_repr(self) -> str:
        """Return what the layer's text shows."""
        return (
            f"in={self.in_channels}, out={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )


class Convolution(_Convolution):
    """A submanifold or strided convolution, or a linear layer where the kernel is one site."""


class ConvolutionTranspose(_Convolution):
    """The transposed convolution that undoes a strided one."""

    transposed = True


def _before_inverse(x: SparseTensor) -> tuple[SparseTensor, CoordinateMap]:
    """Return the input of a transposed convolution on all coarse sites, and the finer map.

    As in MinkowskiEngine, the result has the sites of the finer map that was made first. Coarse
    sites that have been pruned count as zero.
    """
    at = x.at
    finer = at.finer
    if finer is None:
        finer = at.manager.first(tuple(each // 2 for each in at.stride))
        full = None if finer is None else finer.coarser_if_made()
        if finer is None or full is None:
            raise Unsupported(
                "this backend has transposed convolutions to the sites before a strided "
                f"convolution only; there is none from tensor stride {at.stride[0] // 2}"
            )
        place = lookup(full.coordinates, at.coordinates)
        if bool((place < 0).any()):
            raise Unsupported("a transposed convolution has coarse sites without finer sites")
        rows = x.features.new_zeros(full.count(), x.features.shape[1])
        x = SparseTensor(full, rows.index_put((place,), x.features))
    return x, finer


class Linear(Layer):
    """The same matrix at every site, with torch's parameters."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Multiply the features."""
        if not x.is_placed:
            return x.with_rows(self.linear(x.features))
        engine, placed = x.placed
        bound = self._bound.get(engine)
        linear = self.linear
        if bound is None:
            layer = engine.backend.linear(
                linear.in_features, linear.out_features, linear.bias is not None
            )
            bound = self._bound[engine] = BoundLayer(engine, layer)
        weight = engine.backend.to_native(Kind.LINEAR, linear.weight)
        bound.bind("weight", weight.reshape(bound.shapes["weight"]).contiguous())
        if linear.bias is not None:
            bound.bind("bias", linear.bias.reshape(bound.shapes["bias"]))
        return SparseTensor(x.at, placed=(engine, bound(placed, self.training)))


class BatchNorm(Layer):
    """Batch normalisation over sites; an activation that follows is fused where possible."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return a tensor whose normalisation is pending; its activation may be fused with it."""
        if not x.is_placed:
            return x.with_rows(self.bn(x.features))
        if self.bn.training and len(x) < 2:
            raise ValueError("batch normalisation in training needs at least 2 sites")
        return SparseTensor(x.at, norm=_Pending(self, x))

    def fused(self, engine: Engine, slope: float) -> BoundLayer | None:
        """Return the engine's normalisation and leaky ReLU on this module's parameters.

        None if this module lacks the parameters or running statistics of the contract's norm.
        """
        bn = self.bn
        if not (bn.affine and bn.track_running_stats) or bn.momentum is None:
            return None
        config = NormConfig(bn.num_features, slope, bn.eps, bn.momentum)
        bound = self._bound.get((engine, config))
        if bound is None:
            bound = self._bound[engine, config] = BoundLayer(engine, engine.backend.norm(config))
        for name in bound.shapes:
            bound.bind(name, getattr(bn, name))
        return bound


class _Pending:
    """A normalisation of a tensor that waits for its activation.

    Raises
    ------
    RuntimeError
        If the features are read after a step of the optimiser.
    """

    def __init__(self, norm: BatchNorm, source: SparseTensor) -> None:
        self.norm = norm
        self.source = source
        self.training = norm.bn.training
        self.version = self._version()
        self.updated = False
        self._fused: dict[float, SparseTensor] = {}

    def _version(self) -> tuple[int, ...]:
        return tuple(
            [each._version for each in self.norm.bn._parameters.values() if each is not None]
        )

    def apply(self) -> Tensor:
        """Normalise by torch."""
        if self.version != self._version():
            raise RuntimeError(
                "features of a normalisation are read after its parameters have changed: read "
                "them before the optimiser's step"
            )
        bn, rows = self.norm.bn, self.source.features
        if not (self.training and self.updated):
            self.updated = True
            return bn(rows)  # type: ignore[no-any-return]
        # A fused layer has updated the running statistics of the same batch already.
        return functional.batch_norm(rows, None, None, bn.weight, bn.bias, True, 0.0, bn.eps)

    def fuse(self, slope: float) -> SparseTensor | None:
        """Normalise and activate by a layer of the engine."""
        if slope in self._fused:
            return self._fused[slope]
        if self.training and self.updated:
            return None
        engine, placed = self.source.placed
        bound = self.norm.fused(engine, slope)
        if bound is None:
            return None
        counter = self.norm.bn.num_batches_tracked
        out = SparseTensor(self.source.at, placed=(engine, bound(placed, self.training)))
        if self.training and counter is not None:
            counter.add_(1)
        self.updated = True
        self._fused[slope] = out
        return out


class Activation(Layer):
    """An activation of torch on the features; leaky ReLU is fused with a normalisation before it.

    Parameters
    ----------
    *arguments, **named
        Those of the torch module.
    """

    MODULE: ClassVar[type[nn.Module]]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        self.module = self.MODULE(*arguments, **named)
        if getattr(self.module, "inplace", False):
            # The features may belong to other tensors too.
            self.module.inplace = False  # type: ignore[assignment]

    def slope(self) -> float | None:
        """Return the slope below zero of a leaky ReLU; None for other functions."""
        return None

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Apply the function to the features."""
        slope = self.slope()
        if slope is not None:
            fused = x.fused(slope)
            if fused is not None:
                return fused
        return x.with_rows(self.module(x.features))


class ReLU(Activation):
    """Rectified linear unit."""

    MODULE = nn.ReLU

    def slope(self) -> float | None:
        """Return zero."""
        return 0.0


class LeakyReLU(Activation):
    """Leaky rectified linear unit."""

    MODULE = nn.LeakyReLU

    def slope(self) -> float | None:
        """Return the slope below zero."""
        slope: float = self.module.negative_slope  # type: ignore[assignment]
        return slope


class Dropout(Activation):
    """Dropout of single features."""

    MODULE = nn.Dropout


class PReLU(Activation):
    """Parametric rectified linear unit."""

    MODULE = nn.PReLU


class SELU(Activation):
    """Scaled exponential linear unit."""

    MODULE = nn.SELU


class CELU(Activation):
    """Continuously differentiable exponential linear unit."""

    MODULE = nn.CELU


class ELU(Activation):
    """Exponential linear unit."""

    MODULE = nn.ELU


class Tanh(Activation):
    """Hyperbolic tangent."""

    MODULE = nn.Tanh


class Sigmoid(Activation):
    """Logistic function."""

    MODULE = nn.Sigmoid


class Softplus(Activation):
    """Softplus."""

    MODULE = nn.Softplus


class ChannelwiseConvolution(nn.Module):
    """The depthwise convolution, which no engine here has."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        raise Unsupported("this backend has no ChannelwiseConvolution")


class Network(nn.Module):
    """Base class of SPINE's networks."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.D = dimension
