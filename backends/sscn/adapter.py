"""Adapter of this project's own engine to the contract of all engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import backends
from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, NormConfig, Unsupported
from backends.norm import norm_parameters
from backends.profiling_hooks import ProfilingObserver
from backends.sscn import selection
from backends.sscn.autograd_function import materialize
from backends.sscn.coordinates import CoordinateManager
from backends.sscn.deferred import DeferredGraph
from backends.sscn.deferred_layer import Rows
from backends.sscn.layers import (
    Convolution,
    DeferredNorm,
    Linear,
    SiteTensor,
    joined,
    reordered,
    without_norm,
)
from backends.uresnet import UResNet, UResNetConfig


def probe() -> Capabilities:
    """Return what the engine offers here: devices, precisions and kernel sets."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Capabilities(
        version=backends.__version__,
        devices=devices,
        precisions={
            "cpu": ("fp32", "fp64", "bf16"),
            "cuda": ("fp32", "fp64", "tf32", "fp16", "bf16"),
        },
        kinds=frozenset(Kind),
        options={"kernels": selection.NAMES},
    )


_STORAGE = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class Backend(TorchArithmetic):
    """The engine, set up for one device, precision and dimension."""

    name = "sscn"
    fused = frozenset({"normalisation", "join", "add"})
    """Kinds of layer that run inside convolutions; their rows are never stored."""

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.storage = _STORAGE[precision]
        self.kernel_set = selection.choose(options.get("kernels", "auto"), device, self.storage)
        if self.kernel_set == "cpu.bf16":
            self.storage = torch.float32  # bf16: only the factors of products are rounded
        self.graph = DeferredGraph(selection.load(self.kernel_set))
        self.last_pass = ""
        self._depth = 0

    def network(self, config: UResNetConfig) -> UResNet:
        """Return the UResNet; its passes are planned where a kernel set has plans."""
        self._depth = config.depth
        if self.kernel_set == "reference" or not selection.is_compiled():
            return UResNet(self, config)
        from backends.sscn.planned_network import PlannedUResNet

        return PlannedUResNet(self, config)

    def precision_readback(self) -> dict[str, Any]:
        """Return torch's precision settings, the kernels in use, and how the last pass ran."""
        found = {} if not self.last_pass else {"sscn.pass": self.last_pass}
        return (
            super().precision_readback()
            | found
            | {
                "sscn.kernels": self.kernel_set,
                "sscn.storage": str(self.storage),
                "sscn.instructions": self.graph.kernels.instruction_set,
            }
        )

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> SiteTensor:
        """Return features on new sites, which are sorted once for all levels; no maps yet."""
        keys, order = self.graph.kernels.sort_sites(sites, spatial_size)
        coordinates = CoordinateManager(
            keys, order, spatial_size, self.dim, self.graph, self._depth
        )
        return self._on(coordinates, 0, features)

    def with_features(self, x: SiteTensor, features: Tensor) -> SiteTensor:
        """Return new features on the same sites, with the maps built so far."""
        return self._on(x.coordinates, x.level, features)

    def _on(self, coordinates: CoordinateManager, level: int, features: Tensor) -> SiteTensor:
        order, inverse = coordinates.input_order(level)
        kernels = coordinates.graph.kernels
        rows = reordered(features.to(self.storage), None, order, inverse, kernels)
        return SiteTensor(coordinates, level, (Rows(rows),))

    def count(self, x: SiteTensor) -> int:
        """Return the number of sites."""
        return len(x.coordinates.levels[x.level].keys)

    def features(self, x: SiteTensor) -> Tensor:
        """Return the rows in input order, or ascending by site where there is no input order."""
        order, inverse = x.coordinates.input_order(x.level)
        x = without_norm(x)
        graph = x.coordinates.graph
        return reordered(joined(x.unbiased, graph), x.bias, inverse, order, graph.kernels)

    def rows(self, x: SiteTensor) -> Tensor:
        """Return the rows in the engine's own order, running their layers if necessary."""
        return joined(without_norm(x).rows, x.coordinates.graph)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution; all kinds are offered."""
        strided = kind in (Kind.STRIDED, Kind.INVERSE)
        if strided and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        if not strided and kernel_size % 2 == 0:
            raise Unsupported(f"a {kind} convolution needs an odd kernel, not {kernel_size}")
        return Convolution(kind, in_channels, out_channels, kernel_size, self.dim)

    def norm(self, config: NormConfig) -> nn.Module:
        """Return batch normalisation and leaky ReLU."""
        return DeferredNorm(config)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return a linear layer."""
        return Linear(in_channels, out_channels, bias)

    def add(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Add features; a pending convolution adds the other tensor to its result."""
        if a.pending is None:
            a, b = b, a
        b = without_norm(b)
        graph = b.coordinates.graph
        other = b.rows[0] if len(b.rows) == 1 else Rows(joined(b.rows, graph))
        if a.pending is not None:
            return SiteTensor(a.coordinates, a.level, (a.pending(other),), bias=a.bias)
        total = joined(without_norm(a).rows, graph) + materialize(other, graph)
        return SiteTensor(a.coordinates, a.level, (Rows(total),))

    def cat(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Return a tensor of two sources; the next convolution gathers from both."""
        a, b = without_norm(a), without_norm(b)
        rows = a.rows + b.rows
        if len(rows) > 2:
            graph = a.coordinates.graph
            rows = (Rows(joined(a.rows, graph)), Rows(joined(b.rows, graph)))
        return SiteTensor(a.coordinates, a.level, rows)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the parameters of a layer by their canonical names."""
        if isinstance(layer, DeferredNorm):
            return norm_parameters(layer.norm)
        return dict(layer.named_parameters())

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return (out, in, *k), or (in, out, *k) for the inverse, as (K, in, out)."""
        if kind is Kind.LINEAR:
            return weight.T[None]
        return kernel_layouts.to_offsets_first(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return (K, in, out) as (out, in, K), or (in, out, K) for the inverse."""
        if kind is Kind.LINEAR:
            return weight[0].T
        return kernel_layouts.from_offsets_first(kind, weight)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report maps and layers to an observer as long as the context lasts."""
        before, self.graph.observer = self.graph.observer, observer
        try:
            yield
        finally:
            self.graph.observer = before
