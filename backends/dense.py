"""Dense convolutions masked to the active sites; in float64 they are the reference."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, NormConfig, Unsupported
from backends.norm import activation, batch_norm, norm_parameters
from backends.profiling_hooks import ProfilingObserver, observing_maps


def probe() -> Capabilities:
    """Return the capabilities of torch's dense convolutions on this machine."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return Capabilities(
        version=torch.__version__,
        devices=devices,
        precisions={
            "cpu": ("fp32", "fp64", "bf16"),
            "cuda": ("fp32", "fp64", "tf32", "fp16", "bf16"),
        },
        kinds=frozenset(Kind),
    )


@dataclass
class Grid:
    """The active sites of one level, in a fixed order."""

    sites: Tensor  # (N, 1 + dim) int64
    shape: tuple[int, ...]  # (batch, size, size[, size])

    def scatter(self, rows: Tensor) -> Tensor:
        """Return (N, C) rows as a volume (batch, C, *size), zero elsewhere."""
        volume = rows.new_zeros((*self.shape, rows.shape[1]))
        return volume.index_put(self.sites.unbind(1), rows).movedim(-1, 1)

    def gather(self, volume: Tensor) -> Tensor:
        """Return the rows (N, C) of the active sites of a volume."""
        return volume.movedim(1, -1)[self.sites.unbind(1)]

    def mask(self, volume: Tensor) -> Tensor:
        """Return a volume with zeros except at the active sites."""
        mask = torch.zeros(self.shape, dtype=volume.dtype, device=volume.device)
        mask[self.sites.unbind(1)] = 1
        return volume * mask.unsqueeze(1)


@dataclass
class DenseTensor:
    """A volume (batch, C, *size), with the grids of all levels computed so far."""

    volume: Tensor
    grids: list[Grid]
    level: int

    @property
    def grid(self) -> Grid:
        """The active sites of this tensor."""
        return self.grids[self.level]


def _coarser(grid: Grid) -> Grid:
    sites = torch.unique(torch.cat([grid.sites[:, :1], grid.sites[:, 1:] // 2], 1), dim=0)
    return Grid(sites, (grid.shape[0], *(size // 2 for size in grid.shape[1:])))


def _dilated(grid: Grid, kernel_size: int) -> Grid:
    reach = kernel_size // 2
    dim = len(grid.shape) - 1
    steps = itertools.product(range(-reach, reach + 1), repeat=dim)
    offsets = torch.tensor([(0, *step) for step in steps], device=grid.sites.device)
    sites = (grid.sites[:, None] + offsets).reshape(-1, dim + 1)
    inside = (sites >= 0).all(1) & (sites < sites.new_tensor(grid.shape)).all(1)
    return Grid(torch.unique(sites[inside], dim=0), grid.shape)


class Convolution(nn.Module):
    """A torch convolution, masked to the output sites of its kind."""

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, dim: int
    ) -> None:
        super().__init__()
        channels = (
            (in_channels, out_channels) if kind is Kind.INVERSE else (out_channels, in_channels)
        )
        self.kind = kind
        self.weight = nn.Parameter(torch.zeros(*channels, *[kernel_size] * dim))
        self.convolve = functional.conv3d if dim == 3 else functional.conv2d
        self.transpose = functional.conv_transpose3d if dim == 3 else functional.conv_transpose2d

    def forward(self, x: DenseTensor) -> DenseTensor:
        """Convolve the whole volume and mask the result."""
        grids, level = x.grids, x.level
        if self.kind is Kind.STRIDED:
            level += 1
            if level == len(grids):
                grids.append(_coarser(x.grid))
            volume = self.convolve(x.volume, self.weight, stride=2)
        elif self.kind is Kind.INVERSE:
            level -= 1
            volume = self.transpose(x.volume, self.weight, stride=2)
        else:
            volume = self.convolve(x.volume, self.weight, padding="same")
            if self.kind is Kind.ORDINARY:
                grids, level = [_dilated(x.grid, self.weight.shape[-1])], 0
        return DenseTensor(grids[level].mask(volume), grids, level)


class Norm(nn.Module):
    """Batch normalisation over the active sites, then a leaky ReLU."""

    def __init__(self, config: NormConfig) -> None:
        super().__init__()
        self.norm = batch_norm(config)
        self.activation = activation(config)

    def forward(self, x: DenseTensor) -> DenseTensor:
        """Normalise the rows of the active sites."""
        rows = self.activation(self.norm(x.grid.gather(x.volume)))
        return replace(x, volume=x.grid.scatter(rows))


class Linear(nn.Module):
    """The same matrix at every active site."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=bias)

    def forward(self, x: DenseTensor) -> DenseTensor:
        """Multiply the rows of the active sites."""
        rows = self.linear(x.grid.gather(x.volume))
        return replace(x, volume=x.grid.scatter(rows))


class Backend(TorchArithmetic):
    """Dense convolutions masked level by level to the active sites."""

    name = "dense"

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> DenseTensor:
        """Scatter the features into a zero volume."""
        grid = Grid(sites.long(), (batch_size, *[spatial_size] * self.dim))
        return DenseTensor(grid.scatter(features), [grid], 0)

    def with_features(self, x: DenseTensor, features: Tensor) -> DenseTensor:
        """Scatter new features on the same grids."""
        return DenseTensor(x.grid.scatter(features), x.grids, x.level)

    def features(self, x: DenseTensor) -> Tensor:
        """Gather the rows of the active sites."""
        return x.grid.gather(x.volume)

    def count(self, x: DenseTensor) -> int:
        """Return the number of active sites."""
        return len(x.grid.sites)

    def rows(self, x: DenseTensor) -> Tensor:
        """Return the values as they are stored: a volume, zero except at the active sites."""
        return x.volume

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a masked convolution of any kind."""
        if kind in (Kind.STRIDED, Kind.INVERSE) and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        return Convolution(kind, in_channels, out_channels, kernel_size, self.dim)

    def norm(self, config: NormConfig) -> nn.Module:
        """Return normalisation over the active sites and leaky ReLU."""
        return Norm(config)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return a linear layer on the active sites."""
        return Linear(in_channels, out_channels, bias)

    def add(self, a: DenseTensor, b: DenseTensor) -> DenseTensor:
        """Add two volumes."""
        return replace(a, volume=a.volume + b.volume)

    def cat(self, a: DenseTensor, b: DenseTensor) -> DenseTensor:
        """Concatenate two volumes along their channels."""
        return replace(a, volume=torch.cat([a.volume, b.volume], 1))

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.weight}
        if isinstance(layer, Linear):
            return dict(layer.linear.named_parameters())
        assert isinstance(layer, Norm)
        return norm_parameters(layer.norm)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return the weight: the native layout is the canonical one."""
        return weight

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return the weight: the native layout is the canonical one."""
        return weight

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of coarser grids to a profiler."""
        with observing_maps(observer, (sys.modules[__name__], "_coarser")):
            yield
