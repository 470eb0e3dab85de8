"""Our own engine behind the contract."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import backends
from backends.arithmetic import readback, set_torch_knobs
from backends.contract import Capabilities, Kind
from backends.norm import batch_norm, norm_parameters
from backends.sscn import reference


def probe() -> Capabilities:
    """Report which kernel sets of our engine run here."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Capabilities(
        version=backends.__version__,
        devices=devices,
        precisions={"cpu": ("fp32", "fp64"), "cuda": ("fp32", "fp64")},
        kinds=frozenset(Kind),
        options={"kernels": ("reference",)},
    )


@dataclass
class Maps:
    """Sites of every level and the kernel maps built so far, shared by all layers."""

    sites: list[Tensor]
    sizes: list[int]
    submanifold: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    strided: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def submanifold_map(self, level: int, kernel_size: int) -> Tensor:
        """Return the map of a level, built at its first use."""
        key = (level, kernel_size)
        if key not in self.submanifold:
            sites = self.sites[level]
            self.submanifold[key] = reference.kernel_map(
                sites, sites, kernel_size, self.sizes[level]
            )
        return self.submanifold[key]

    def strided_maps(self, level: int) -> tuple[Tensor, Tensor]:
        """Return the maps down from a level and back up to it, built at their first use."""
        if level not in self.strided:
            coarse, down, up = reference.strided_map(self.sites[level], self.sizes[level])
            self.sites.append(coarse)
            self.sizes.append(self.sizes[level] // 2)
            self.strided[level] = (down, up)
        return self.strided[level]


@dataclass
class SiteTensor:
    """Features (N, C) on the sites of one level."""

    rows: Tensor
    maps: Maps
    level: int


class Convolution(nn.Module):
    """A convolution over a kernel map."""

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, dim: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.zeros(kernel_size**dim, in_channels, out_channels))

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Convolve on the sites that the kind of layer keeps."""
        maps, level = x.maps, x.level
        if self.kind is Kind.STRIDED:
            table, _ = maps.strided_maps(level)
            level += 1
        elif self.kind is Kind.INVERSE:
            level -= 1
            _, table = maps.strided_maps(level)
        elif self.kind is Kind.SUBMANIFOLD:
            table = maps.submanifold_map(level, self.kernel_size)
        else:
            sites, size = maps.sites[level], maps.sizes[level]
            reached = reference.dilated_sites(sites, self.kernel_size, size)
            table = reference.kernel_map(sites, reached, self.kernel_size, size)
            maps, level = Maps([reached], [size]), 0
        return SiteTensor(reference.convolve(x.rows, self.weight, table), maps, level)


class NormReLU(nn.Module):
    """Batch normalisation and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = batch_norm(channels)

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Normalise the rows."""
        return replace(x, rows=functional.relu(self.norm(x.rows)))


class Linear(nn.Module):
    """The same matrix at every site."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=bias)

    def forward(self, x: SiteTensor) -> SiteTensor:
        """Multiply the rows."""
        return replace(x, rows=self.linear(x.rows))


class Backend:
    """Our own submanifold sparse convolutional network engine."""

    name = "sscn"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        self.dim = dim
        self.device = device
        self.precision = precision
        set_torch_knobs(precision)

    def precision_readback(self) -> dict[str, Any]:
        """Read torch's knobs back."""
        return readback()

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> SiteTensor:
        """Start with no maps."""
        return SiteTensor(features, Maps([sites.long()], [spatial_size]), 0)

    def with_features(self, x: SiteTensor, features: Tensor) -> SiteTensor:
        """Keep the maps."""
        return SiteTensor(features, x.maps, 0)

    def features(self, x: SiteTensor) -> Tensor:
        """Return the rows; they never left the input order."""
        return x.rows

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution of any kind."""
        return Convolution(kind, in_channels, out_channels, kernel_size, self.dim)

    def norm_relu(self, channels: int) -> nn.Module:
        """Return normalisation and ReLU."""
        return NormReLU(channels)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return a matrix for every site."""
        return Linear(in_channels, out_channels, bias)

    def add(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Add the rows."""
        return replace(a, rows=a.rows + b.rows)

    def cat(self, a: SiteTensor, b: SiteTensor) -> SiteTensor:
        """Concatenate the rows."""
        return replace(a, rows=torch.cat([a.rows, b.rows], 1))

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Name the layer's parameters canonically."""
        if isinstance(layer, Convolution):
            return {"weight": layer.weight}
        if isinstance(layer, Linear):
            return dict(layer.linear.named_parameters())
        assert isinstance(layer, NormReLU)
        return norm_parameters(layer.norm)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out)."""
        if kind is Kind.LINEAR:
            return weight
        if kind is not Kind.INVERSE:
            weight = weight.transpose(0, 1)
        return weight.flatten(2).permute(2, 0, 1)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, K), or (in, out, K) for the inverse."""
        if kind is Kind.LINEAR:
            return weight
        return weight.permute(1, 2, 0) if kind is Kind.INVERSE else weight.permute(2, 1, 0)
