"""ocnn 2.3 (MIT), octree convolutions, behind the contract."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters
from backends.profiling_hooks import ProfilingObserver, observing_maps


def _import_without_torchvision() -> Any:
    """Import ocnn without torchvision, which only one of its example models uses."""
    names = ("torchvision", "torchvision.models")
    if any(name in sys.modules for name in names):
        import ocnn
    else:
        parent, models = (types.ModuleType(name) for name in names)
        models.resnet18 = None  # type: ignore[attr-defined]
        parent.models = models  # type: ignore[attr-defined]
        sys.modules.update(zip(names, (parent, models), strict=True))
        try:
            import ocnn
        finally:
            for name in names:
                del sys.modules[name]
    return ocnn


ocnn = _import_without_torchvision()

METHODS = ("block_gemm", "explicit_gemm")
METHODS_CUDA = ("triton", *METHODS)


def probe() -> Capabilities:
    """Return the capabilities of ocnn on this machine."""
    on_cuda = torch.cuda.is_available()
    precisions: dict[str, tuple[str, ...]] = {"cpu": ("fp32", "fp64")}
    if on_cuda:
        precisions["cuda"] = ("fp32", "tf32", "fp16", "bf16")
    return Capabilities(
        version=importlib.metadata.version("ocnn"),
        devices=("cpu", "cuda") if on_cuda else ("cpu",),
        precisions=precisions,
        dims=(3,),
        options={"method": METHODS_CUDA if on_cuda else METHODS},
        note="builds the neighbours of every level with the tensor, and reorders rows to z-order",
    )


@dataclass(frozen=True)
class OctreeTensor:
    """Features in z-order on the non-empty nodes of one depth of an octree."""

    values: Tensor  # (N, C)
    octree: Any
    depth: int
    row_of_input: Tensor  # (N,) z-order row of each input row, at the finest level


class Convolution(nn.Module):
    """A convolution of ocnn on non-empty nodes, which is a sparse convolution."""

    def __init__(self, native: nn.Module, change: int, cast: torch.dtype | None) -> None:
        super().__init__()
        self.native = native
        self.change = change
        self.cast = cast

    def forward(self, x: OctreeTensor) -> OctreeTensor:
        """Convolve; the engine computes in the type of its input."""
        values = x.values if self.cast is None else x.values.to(self.cast)
        values = self.native(values, x.octree, x.depth)
        return replace(x, values=values, depth=x.depth + self.change)


class Backend(TorchArithmetic, PointwiseByTorch):
    """ocnn for one device and precision."""

    name = "ocnn"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.method = options["method"]
        self.cast = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        if device == "cuda":
            self._config().allow_tf32 = precision == "tf32"

    @staticmethod
    def _config() -> Any:
        from ocnn.nn.kernels import config  # needs Triton

        return config

    def precision_readback(self) -> dict[str, Any]:
        """Return torch's settings, and those of ocnn's Triton kernels on a GPU."""
        own: dict[str, Any] = {"ocnn.method": self.method}
        if self.device == "cuda":
            own["ocnn.allow_tf32"] = self._config().allow_tf32
        return super().precision_readback() | own

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> OctreeTensor:
        """Build the octree with the neighbours of all levels, and reorder the rows to z-order.

        The octree is one level deeper than the volume requires, so that no level of the network
        is one that ocnn stores as full.
        """
        depth = (spatial_size - 1).bit_length() + 1
        batch = sites[:, 0].long()
        events = int(batch.max()) + 1  # ocnn rejects a batch whose last event is empty
        points = (sites[:, 1:] + 0.5) * (2 / 2**depth) - 1
        octree = ocnn.octree.Octree(depth, full_depth=1, batch_size=events, device=sites.device)
        cloud = ocnn.octree.Points(points, batch_id=batch, batch_size=events)
        row_of_input = octree.build_octree(cloud)
        octree.construct_all_neigh()
        return self.with_features(OctreeTensor(features, octree, depth, row_of_input), features)

    def with_features(self, x: OctreeTensor, features: Tensor) -> OctreeTensor:
        """Return other features on the same octree."""
        if x.depth < x.octree.depth:
            return replace(x, values=features)
        input_of_row = torch.empty_like(x.row_of_input)
        input_of_row[x.row_of_input] = torch.arange(len(features), device=features.device)
        return replace(x, values=features[input_of_row])

    def features(self, x: OctreeTensor) -> Tensor:
        """Return the rows; at the finest level, in input order."""
        return x.values[x.row_of_input] if x.depth == x.octree.depth else x.values

    def rows(self, x: OctreeTensor) -> Tensor:
        """Return the rows in z-order."""
        return x.values

    def replace(self, x: OctreeTensor, rows: Tensor) -> OctreeTensor:
        """Return other rows at the same depth of the same octree."""
        return replace(x, values=rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution on non-empty nodes."""
        expected = 3 if kind is Kind.SUBMANIFOLD else 2
        if kind is Kind.ORDINARY or kernel_size != expected:
            raise Unsupported(f"ocnn has no {kind} convolution with kernel {kernel_size}")
        layer = ocnn.nn.OctreeDeconv if kind is Kind.INVERSE else ocnn.nn.OctreeConv
        native = layer(
            in_channels,
            out_channels,
            [kernel_size],
            1 if kind is Kind.SUBMANIFOLD else 2,
            nempty=True,
            method=self.method,
        )
        change = {Kind.STRIDED: -1, Kind.INVERSE: 1}.get(kind, 0)
        return Convolution(native, change, self.cast)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.native.weights}  # type: ignore[dict-item]
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k) into (K, in, out), and (in, out, *k) into (K, out, in)."""
        if kind is Kind.LINEAR:
            return weight
        return weight.flatten(2).permute(2, 1, 0)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, K), and (K, out, in) into (in, out, K)."""
        if kind is Kind.LINEAR:
            return weight
        return weight.permute(2, 1, 0)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of neighbours to a profiler."""
        with observing_maps(observer, (ocnn.octree.Octree, "construct_all_neigh")):
            yield
