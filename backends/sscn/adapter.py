"""Our own engine behind the contract: layers that wait for each other, so that kernels can fuse.

A norm with ReLU, a sum and a concatenation only note what is to be done; the next convolution
does it while gathering its rows, and a convolution waits for the residual that may be added to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import backends
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported, site_keys
from backends.norm import norm_parameters
from backends.profiling_hooks import ProfilingObserver, observing_maps, replaced
from backends.sscn import kernels, node, tape
from backends.sscn.compiling import traced, whole
from backends.sscn.convolution import convolve
from backends.sscn.kernels import Connection, axis_bits, demorton, identity
from backends.sscn.node import tracked
from backends.sscn.norm import NormReLU, differentiable
from backends.sscn.tape import BatchNorm, Layer, Rows


def probe() -> Capabilities:
    """Report which kernel sets of our engine run here."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Capabilities(
        version=backends.__version__,
        devices=devices,
        precisions={
            "cpu": ("fp32", "fp64", "bf16"),
            "cuda": ("fp32", "fp64", "tf32", "fp16", "bf16"),
        },
        kinds=frozenset(Kind),
        options={"kernels": kernels.NAMES},
    )


@dataclass
class Level:
    """The sites of one level: their sorted keys and the maps built on them so far."""

    keys: Tensor
    spatial_size: int
    submanifold: dict[int, Connection] = field(default_factory=dict)
    down: Connection | None = None


class Pyramid:
    """All levels of one batch, shared by all layers; maps are built at their first use."""

    def __init__(self, keys: Tensor, order: Tensor | None, size: int, dim: int, name: str) -> None:
        self.levels = [Level(keys, size)]
        self.order = order
        self.dim = dim
        self.kernel_set = name
        self.functions = kernels.load(name)
        self._presented: tuple[Tensor, Tensor] | None = None

    def submanifold(self, level: int, kernel_size: int) -> Connection:
        """Return the map of a level's sites to themselves."""
        at = self.levels[level]
        if kernel_size not in at.submanifold:
            at.submanifold[kernel_size] = whole(self.functions.submanifold_map)(
                at.keys, self.dim, kernel_size, at.spatial_size
            )
        return at.submanifold[kernel_size]

    def down(self, level: int) -> Connection:
        """Return the map from a level to the next coarser one."""
        at = self.levels[level]
        if at.down is None:
            if at.spatial_size < 2:
                raise ValueError("a volume of one voxel a side has no coarser level")
            keys, at.down = whole(self.functions.strided_map)(at.keys, self.dim)
            self.levels.append(Level(keys, (at.spatial_size + 1) // 2))
        return at.down

    def ordinary(self, level: int, kernel_size: int) -> tuple[Pyramid, Connection]:
        """Return the sites that a kernel reaches, as a pyramid of its own, and the map to them."""
        at = self.levels[level]
        keys, connection = whole(self.functions.ordinary_map)(
            at.keys, self.dim, kernel_size, at.spatial_size
        )
        return Pyramid(keys, None, at.spatial_size, self.dim, self.kernel_set), connection

    def presented(self, level: int) -> tuple[Tensor, Tensor]:
        """Return the order in which a user sees the rows of a level, and its inverse.

        The finest level of an input keeps the input's order; other sites ascend by (batch, x, y,
        z).
        """
        if level == 0 and self._presented is not None:
            return self._presented
        order = self.order if level == 0 else None
        if order is None:
            at = self.levels[level]
            sites = demorton(at.keys, axis_bits(at.spatial_size), self.dim)
            order = traced(self.functions).inverted(site_keys(sites, at.spatial_size).argsort())
        inverse = traced(self.functions).inverted(order)
        if level == 0:
            self._presented = order, inverse
        return order, inverse


class SiteTensor:
    """Features on the sites of one level, perhaps still to be computed.

    Either some ``rows``, one or two sources whose channels are concatenated and passed through
    relu(scale * x + shift) where these are given; or ``pending``, a convolution that waits for
    the residual to be added to it. A ``bias`` is still to be added to a single source.
    """

    __slots__ = ("_rows", "bias", "level", "norm", "pending", "pyramid")

    def __init__(
        self,
        pyramid: Pyramid,
        level: int,
        rows: tuple[Rows, ...] = (),
        norm: tape.Norm = None,
        pending: Callable[[Rows | None], Rows] | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.pyramid = pyramid
        self.level = level
        self.norm = norm
        self.pending = pending
        self.bias = bias
        self._rows = rows

    @property
    def unbiased(self) -> tuple[Rows, ...]:
        """The sources without the bias, noted now if they were pending."""
        if self.pending is not None:
            self._rows = (self.pending(None),)
            self.pending = None
        return self._rows

    @property
    def rows(self) -> tuple[Rows, ...]:
        """The sources."""
        if self.bias is not None:
            self._rows, self.bias = (Rows(tracked(self.unbiased[0]) + self.bias),), None
        return self.unbiased


_Take = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _Reorder(torch.autograd.Function):
    """Take rows in another order; the gradient takes them back, which no scatter does as fast."""

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


def _reordered(
    rows: Tensor, bias: Tensor | None, order: Tensor, inverse: Tensor, functions: kernels.Kernels
) -> Tensor:
    take = traced(functions).take
    wanted = rows.requires_grad or (bias is not None and bias.requires_grad)
    if not (wanted and torch.is_grad_enabled()):
        return take(rows, order, bias)
    out: Tensor = _Reorder.apply(rows, bias, order, inverse, take)
    return out


class _Weighted(nn.Module):
    """What convolutions and linear layers share: the weights and the launch over a map."""

    def __init__(self, taps: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, in_channels, out_channels))

    def launch(self, x: SiteTensor, connection: Connection, level: int) -> SiteTensor:
        """Return a tensor that waits for its residual."""
        sources, norm, pyramid = x.rows, x.norm, x.pyramid

        def compute(residual: Rows | None) -> Rows:
            weight: Tensor = self.weight
            storage = sources[0].dtype
            if weight.dtype is not storage:
                weight = weight.to(storage)
            if torch.compiler.is_compiling():
                return _compiled(sources, weight, connection, norm, residual, self.training, x)
            return Layer(
                sources, weight, connection, norm, residual, self.training, pyramid.functions
            ).noted()

        return SiteTensor(pyramid, level, pending=compute)


_SUBMANIFOLD, _STRIDED, _INVERSE = Kind.SUBMANIFOLD, Kind.STRIDED, Kind.INVERSE  # quicker


class Convolution(_Weighted):
    """A convolution over a kernel map."""

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, dim: int
    ) -> None:
        super().__init__(kernel_size**dim, in_channels, out_channels)
        self.kind = kind
        self.kernel_size = kernel_size

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Convolve on the sites that the kind of layer keeps."""
        pyramid, level, kind = x.pyramid, x.level, self.kind
        if kind is _SUBMANIFOLD:
            return self.launch(x, pyramid.submanifold(level, self.kernel_size), level)
        if kind is _STRIDED:
            return self.launch(x, pyramid.down(level), level + 1)
        if kind is _INVERSE:
            down = pyramid.down(level - 1)
            return self.launch(x, Connection(down.backward, down.forward, False), level - 1)
        reached, connection = pyramid.ordinary(level, self.kernel_size)
        out = self.launch(x, connection, 0)
        out.pyramid = reached
        return out


class Linear(_Weighted):
    """The same matrix at every site."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(1, in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Multiply the rows."""
        rows = len(x.pyramid.levels[x.level].keys)
        out = self.launch(x, identity(rows), x.level)
        out.bias = self.bias
        return out


class Norm(NormReLU):
    """Batch normalisation and ReLU, left to the next convolution."""

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Note scale and shift."""
        x = _plain(x)
        sources = x.rows
        if not self.training:
            return SiteTensor(x.pyramid, x.level, sources, self.from_running())
        for rows in sources:
            _sum_up(rows)
        return SiteTensor(x.pyramid, x.level, sources, self.from_batch(sources))


def _compiled(
    sources: tuple[Rows, ...],
    weight: Tensor,
    connection: Connection,
    norm: tape.Norm,
    residual: Rows | None,
    statistics: bool,
    x: SiteTensor,
) -> Rows:
    """As a noted layer, but run now by the operator that ``torch.compile`` keeps whole."""
    features = [tracked(rows) for rows in sources]
    scale, shift = _scale_and_shift(sources, norm, x.pyramid.functions) or (None, None)
    out, sums = convolve(
        features[0], features[1] if len(features) > 1 else None, weight, connection, scale, shift,
        None if residual is None else tracked(residual),
        statistics=statistics, kernel_set=x.pyramid.kernel_set,
    )  # fmt: skip
    return Rows(out, sums if statistics else None)


def _scale_and_shift(
    sources: tuple[Rows, ...], norm: tape.Norm, functions: kernels.Kernels
) -> tuple[Tensor, Tensor] | None:
    """Return a norm as autograd knows it."""
    if not isinstance(norm, BatchNorm):
        return norm
    for rows in sources:
        tracked(rows)
    return differentiable(norm, sources, functions)


def _sum_up(rows: Rows) -> None:
    """Sum up features and their squares where no kernel does."""
    if rows.made is not None and rows.made.statistics:
        return
    values = tracked(rows)
    untracked = rows.sums is not None and not rows.sums.requires_grad
    if rows.sums is None or (untracked and values.requires_grad and torch.is_grad_enabled()):
        exact = values.double()
        rows.sums = torch.stack([exact.sum(0), exact.square().sum(0)])


def _plain(x: SiteTensor) -> SiteTensor:
    """Carry a noted norm out, for the rare layer that does not gather."""
    if x.norm is None:  # and no bias added: ``features`` does that on the way
        return x
    norm = _scale_and_shift(x.rows, x.norm, x.pyramid.functions)
    assert norm is not None
    scale, shift = norm
    features = (_joined(x.rows) * scale + shift).relu().to(x.rows[0].dtype)
    return SiteTensor(x.pyramid, x.level, (Rows(features),))


def _joined(sources: tuple[Rows, ...]) -> Tensor:
    """Return all channels as autograd knows them."""
    features = [tracked(rows) for rows in sources]
    return features[0] if len(features) == 1 else torch.cat(features, 1)


_STORAGE = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class Backend(TorchArithmetic):
    """Our own submanifold sparse convolutional network engine."""

    name = "sscn"
    fused = frozenset({"normalisation", "join", "add"})
    """What its convolutions do on the way: no rows of these layers are ever written."""

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.storage = _STORAGE[precision]
        self.kernel_set = kernels.choose(options.get("kernels", "auto"), device, self.storage)
        if self.kernel_set == "cpu.bf16":
            self.storage = torch.float32  # it rounds products alone

    def precision_readback(self) -> dict[str, Any]:
        """Read torch's knobs back, and the kernels in use."""
        return super().precision_readback() | {
            "sscn.kernels": self.kernel_set,
            "sscn.storage": str(self.storage),
            "sscn.instructions": kernels.instructions(self.kernel_set),
        }

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> SiteTensor:
        """Sort the sites, once for all levels; no maps yet."""
        keys, order = kernels.load(self.kernel_set).sort_sites(sites, spatial_size)
        pyramid = Pyramid(keys, order, spatial_size, self.dim, self.kernel_set)
        return self._on(pyramid, features)

    def with_features(self, x: SiteTensor, features: Tensor) -> SiteTensor:
        """Keep the maps."""
        return self._on(x.pyramid, features)

    def _on(self, pyramid: Pyramid, features: Tensor) -> SiteTensor:
        order, inverse = pyramid.presented(0)
        rows = _reordered(features.to(self.storage), None, order, inverse, pyramid.functions)
        return SiteTensor(pyramid, 0, (Rows(rows),))

    def features(self, x: SiteTensor) -> Tensor:
        """Return the rows in input order, or ascending by site where there is no input order."""
        order, inverse = x.pyramid.presented(x.level)
        x = _plain(x)
        rows = _joined(x.unbiased)
        return _reordered(rows, x.bias, inverse, order, x.pyramid.functions)

    def rows(self, x: SiteTensor) -> Tensor:
        """Return the rows in the engine's own order, computed if they were pending."""
        return _joined(_plain(x).rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution of any kind."""
        strided = kind in (Kind.STRIDED, Kind.INVERSE)
        if strided and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        if not strided and kernel_size % 2 == 0:
            raise Unsupported(f"a {kind} convolution needs an odd kernel, not {kernel_size}")
        return Convolution(kind, in_channels, out_channels, kernel_size, self.dim)

    def norm_relu(self, channels: int) -> nn.Module:
        """Return normalisation and ReLU."""
        return Norm(channels)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return a matrix for every site."""
        return Linear(in_channels, out_channels, bias)

    def add(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Add the rows in the kernel that computes one of them."""
        if a.pending is None:
            a, b = b, a
        b = _plain(b)
        other = b.rows[0] if len(b.rows) == 1 else Rows(_joined(b.rows))
        if a.pending is not None:
            return SiteTensor(a.pyramid, a.level, (a.pending(other),), bias=a.bias)
        total = _joined(_plain(a).rows) + tracked(other)
        return SiteTensor(a.pyramid, a.level, (Rows(total),))

    def cat(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Note two sources; the next convolution gathers from both."""
        a, b = _plain(a), _plain(b)
        rows = a.rows + b.rows
        if len(rows) > 2:
            rows = (Rows(_joined(a.rows)), Rows(_joined(b.rows)))
        return SiteTensor(a.pyramid, a.level, rows)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Name the layer's parameters canonically."""
        if isinstance(layer, Norm):
            return norm_parameters(layer.norm)
        return dict(layer.named_parameters())

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out)."""
        if kind is Kind.LINEAR:
            return weight.T[None]
        if kind is not Kind.INVERSE:
            weight = weight.transpose(0, 1)
        return weight.flatten(2).permute(2, 0, 1)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, K), or (in, out, K) for the inverse."""
        if kind is Kind.LINEAR:
            return weight[0].T
        return weight.permute(1, 2, 0) if kind is Kind.INVERSE else weight.permute(2, 1, 0)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Tell a profiler of maps, and of layers, which run after they were called."""

        def deferred(launch: Callable[..., SiteTensor]) -> Callable[..., SiteTensor]:
            def launched(*arguments: Any) -> SiteTensor:
                out = launch(*arguments)
                assert out.pending is not None
                out.pending = observer.deferred(out.pending)
                return out

            return launched

        functions = kernels.load(self.kernel_set)
        maps = [(functions, f"{kind}_map") for kind in ("submanifold", "strided", "ordinary")]
        with (
            observing_maps(observer, *maps),
            replaced(_Weighted, "launch", deferred),
            replaced(tape, "recorder", lambda _: observer.recorder),
            replaced(node, "run", observer.outside_layers),
            replaced(node, "node", observer.outside_layers),
        ):
            yield
