"""WarpConvNet 1.8 (Apache-2.0) behind the contract; CUDA only.

This adapter was written from the source distribution and has not run yet. Its results, like those
of every engine, are compared with float64 before a time counts.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from warpconvnet.geometry.types.voxels import Voxels
from warpconvnet.nn.modules.sparse_conv import SpatiallySparseConv

from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters


def probe() -> Capabilities:
    """Return the capabilities of WarpConvNet on this machine."""
    on_cuda = torch.cuda.is_available()
    return Capabilities(
        version=importlib.metadata.version("warpconvnet"),
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32", "fp16", "bf16")} if on_cuda else {},
        missing="" if on_cuda else "a CUDA device: it has no operation for the CPU",
        note="orders rows by event; keeps the offsets of events on the CPU",
    )


@dataclass(frozen=True)
class VoxelTensor:
    """Voxels of one level, those of all finer levels, and the order of the input."""

    voxels: Any
    finer: tuple[Any, ...]
    input_of_row: Tensor  # (N,) input row of each row of the finest level
    row_of_input: Tensor


class Convolution(nn.Module):
    """A convolution of WarpConvNet; a transposed one takes its output voxels as an argument."""

    def __init__(self, native: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.native = native
        self.kind = kind

    def forward(self, x: VoxelTensor) -> VoxelTensor:
        """Convolve; the kind of layer determines the output sites."""
        if self.kind is Kind.STRIDED:
            return replace(x, voxels=self.native(x.voxels), finer=(*x.finer, x.voxels))
        if self.kind is Kind.INVERSE:
            voxels = self.native(x.voxels, x.finer[-1])
            return replace(x, voxels=voxels, finer=x.finer[:-1])
        return replace(x, voxels=self.native(x.voxels))


class Backend(TorchArithmetic, PointwiseByTorch):
    """WarpConvNet for one precision and dimension."""

    name = "warpconvnet"

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> VoxelTensor:
        """Return voxels without maps; the engine expects the rows of each event in sequence."""
        input_of_row = sites[:, 0].argsort(stable=True)
        row_of_input = torch.empty_like(input_of_row)
        row_of_input[input_of_row] = torch.arange(len(sites), device=sites.device)
        counts = torch.bincount(sites[:, 0].long(), minlength=batch_size)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).cpu()
        coordinates = sites[input_of_row, 1:].contiguous()
        voxels = Voxels(coordinates, features[input_of_row], offsets=offsets)
        return VoxelTensor(voxels, (), input_of_row, row_of_input)

    def with_features(self, x: VoxelTensor, features: Tensor) -> VoxelTensor:
        """Return other features with the same cache, which holds the maps."""
        return self.replace(x, features if x.finer else features[x.input_of_row])

    def features(self, x: VoxelTensor) -> Tensor:
        """Return the rows; at the finest level, in input order."""
        rows = self.rows(x)
        return rows if x.finer else rows[x.row_of_input]

    def rows(self, x: VoxelTensor) -> Tensor:
        """Return the rows, ordered by event."""
        features: Tensor = x.voxels.feature_tensor
        return features

    def replace(self, x: VoxelTensor, rows: Tensor) -> VoxelTensor:
        """Return other rows on the same sites, with the same cache."""
        return replace(x, voxels=x.voxels.replace(batched_features=rows))

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution."""
        expected = 3 if kind is Kind.SUBMANIFOLD else 2
        if kind is Kind.ORDINARY or kernel_size != expected:
            raise Unsupported(f"WarpConvNet: no {kind} convolution with kernel {kernel_size} here")
        native = SpatiallySparseConv(
            in_channels,
            out_channels,
            kernel_size,
            stride=1 if kind is Kind.SUBMANIFOLD else 2,
            bias=False,
            transposed=kind is Kind.INVERSE,
            num_spatial_dims=self.dim,
        )
        return Convolution(native, kind)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.native.weight}  # type: ignore[dict-item]
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out)."""
        return kernel_layouts.to_offsets_first(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, K), or (in, out, K) for the inverse."""
        return kernel_layouts.from_offsets_first(kind, weight)
