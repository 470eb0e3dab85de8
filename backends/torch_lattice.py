"""torch-lattice 0.5 (MIT), a fork of torchsparse, behind the contract; CUDA only.

This adapter was written from the source of the wheel and has not run yet: it needs Python 3.14 and
torch 2.11 for CUDA 12.8. Its results, like those of every engine, are compared with float64 before
a time counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_lattice
import torch_lattice.nn
from torch import Tensor, nn

from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters


def probe() -> Capabilities:
    """Return the capabilities of torch-lattice on this machine."""
    on_cuda = torch.cuda.is_available()
    return Capabilities(
        version=torch_lattice.__version__,
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32", "tf32")} if on_cuda else {},
        dims=(3,),
        missing="" if on_cuda else "a CUDA device: it has no operation for the CPU",
    )


class Backend(TorchArithmetic, PointwiseByTorch):
    """torch-lattice for one precision."""

    name = "torch-lattice"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        torch_lattice.backends.allow_tf32 = precision == "tf32"

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and of the engine."""
        return super().precision_readback() | {
            "torch_lattice.backends.allow_tf32": torch_lattice.backends.allow_tf32,
            "torch_lattice.backends.allow_fp16": torch_lattice.backends.allow_fp16,
        }

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Return a tensor with a new coordinate manager."""
        volume = (batch_size, *[spatial_size] * self.dim)
        return torch_lattice.SparseTensor(
            features.contiguous(), sites.contiguous(), spatial_range=volume
        )

    def with_features(self, x: Any, features: Tensor) -> Any:
        """Return other features with the same coordinate manager, which holds the maps."""
        return x.replace(feats=features)

    def features(self, x: Any) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        features: Tensor = x.feats
        return features

    def rows(self, x: Any) -> Tensor:
        """Return the rows."""
        features: Tensor = x.feats
        return features

    def replace(self, x: Any, rows: Tensor) -> Any:
        """Return other rows on the same sites and maps."""
        return x.replace(feats=rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution; the engine finds the level from the stride."""
        if kind is Kind.SUBMANIFOLD:
            native: nn.Module = torch_lattice.nn.SubmConv3d(in_channels, out_channels, kernel_size)
            return native
        if kind not in (Kind.STRIDED, Kind.INVERSE) or kernel_size != 2:
            raise Unsupported(
                f"torch-lattice: no {kind} convolution with kernel {kernel_size} here"
            )
        layer = (
            torch_lattice.nn.Conv3d if kind is Kind.STRIDED else torch_lattice.nn.ConvTranspose3d
        )
        result: nn.Module = layer(in_channels, out_channels, 2, stride=2)
        return result

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Pointwise):
            return pointwise_parameters(layer)
        return {"weight": layer.weight}  # type: ignore[dict-item]

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out)."""
        return kernel_layouts.to_offsets_first(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, K), or (in, out, K) for the inverse."""
        return kernel_layouts.from_offsets_first(kind, weight)
