"""SparseConvNet 0.2 (BSD), the engine of the original study, behind the contract."""

from __future__ import annotations

import importlib.metadata

import sparseconvnet as scn
import torch
from torch import Tensor, nn

from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, NormConfig, Unsupported

UNIQUE_SITES = 0  # mode of InputLayer: there are no duplicates, and the order is kept


def _runs_on_cuda() -> bool:
    """Return whether this is a CUDA build, by a trial: CPU builds have the same names."""
    if not torch.cuda.is_available():
        return False
    x = Backend(2, "cuda", "fp32", {}).tensor(
        torch.zeros(1, 3, dtype=torch.int32, device="cuda"), torch.ones(1, 1, device="cuda"), 2, 1
    )
    try:
        scn.NetworkInNetwork(1, 1, False).cuda()(x)
    except RuntimeError:
        return False
    return True


def probe() -> Capabilities:
    """Return the capabilities of this build of SparseConvNet on this machine."""
    devices = ("cpu", "cuda") if _runs_on_cuda() else ("cpu",)
    return Capabilities(
        version=importlib.metadata.version("sparseconvnet"),
        devices=devices,
        precisions=dict.fromkeys(devices, ("fp32",)),
        note="reads sites on the CPU and hashes them there, on CUDA too; its ordinary convolution "
        "has no padding and is left out",
    )


class Backend(TorchArithmetic):
    """SparseConvNet for one device and dimension."""

    name = "sparseconvnet"

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> scn.SparseConvNetTensor:
        """Return a tensor; the engine hashes the sites on the CPU, with the batch index last."""
        size = torch.full((self.dim,), spatial_size, dtype=torch.long)
        layer = scn.InputLayer(self.dim, size, mode=UNIQUE_SITES)
        return layer([sites.roll(-1, 1), features.contiguous(), batch_size])

    def with_features(
        self, x: scn.SparseConvNetTensor, features: Tensor
    ) -> scn.SparseConvNetTensor:
        """Return other features with the same metadata, which holds the maps."""
        return scn.SparseConvNetTensor(features.contiguous(), x.metadata, x.spatial_size)

    def features(self, x: scn.SparseConvNetTensor) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        result: Tensor = x.features
        return result

    def add(
        self, a: scn.SparseConvNetTensor, b: scn.SparseConvNetTensor
    ) -> scn.SparseConvNetTensor:
        """Add the rows."""
        return scn.SparseConvNetTensor(a.features + b.features, a.metadata, a.spatial_size)

    def cat(
        self, a: scn.SparseConvNetTensor, b: scn.SparseConvNetTensor
    ) -> scn.SparseConvNetTensor:
        """Concatenate the rows."""
        return scn.concatenate_feature_planes([a, b])

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution; the engine finds the level from the spatial size."""
        if kind is Kind.SUBMANIFOLD:
            native: nn.Module = scn.SubmanifoldConvolution(
                self.dim, in_channels, out_channels, kernel_size, False
            )
            return native
        if kind not in (Kind.STRIDED, Kind.INVERSE) or kernel_size != 2:
            raise Unsupported(f"SparseConvNet has no padded {kind} convolution of {kernel_size}")
        layer = scn.Convolution if kind is Kind.STRIDED else scn.Deconvolution
        result: nn.Module = layer(self.dim, in_channels, out_channels, 2, 2, False)
        return result

    def norm(self, config: NormConfig) -> nn.Module:
        """Return the engine's normalisation and leaky ReLU; its momentum is one minus torch's."""
        layer: nn.Module = scn.BatchNormalization(
            config.channels,
            eps=config.eps,
            momentum=1 - config.momentum,
            leakiness=config.slope,
        )
        return layer

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return the engine's linear layer."""
        layer: nn.Module = scn.NetworkInNetwork(in_channels, out_channels, bias)
        return layer

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: getattr(layer, name) for name in names if hasattr(layer, name)}

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, 1, in, out)."""
        if kind is Kind.LINEAR:
            return weight.t()
        return kernel_layouts.to_offsets_first(kind, weight).unsqueeze(1)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, 1, in, out) into (out, in, K), or (in, out, K) for the inverse."""
        if kind is Kind.LINEAR:
            return weight.t()
        return kernel_layouts.from_offsets_first(kind, weight.squeeze(1))
