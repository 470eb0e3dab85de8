"""The dense U-ResNet of arXiv:1903.05663, as published.

It has eighteen times as many parameters as the sparse network that it was compared with, and
computes another function. It is measured to reproduce the published comparison. The engine
``dense`` computes the same function as the sparse engines.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends import dense
from backends.capabilities import Capabilities
from backends.uresnet import UResNetConfig


def probe() -> Capabilities:
    """Return the capabilities of torch's dense convolutions on this machine."""
    torch_dense = dense.probe()
    return Capabilities(
        version=torch_dense.version,
        devices=torch_dense.devices,
        precisions=torch_dense.precisions,
        kinds=frozenset(),
        network="dense-study",
        note="the study's dense network: 18 times the parameters, another function; its results "
        "are checked to be finite only",
    )


@dataclass(frozen=True)
class Volume:
    """A dense input, and the sites whose logits are returned."""

    values: Tensor  # (batch, 1, *size)
    sites: Tensor  # (N, 1 + dim) int64


class _Layers:
    """Torch's layers for two or three dimensions."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.convolution: Any = nn.Conv3d if dim == 3 else nn.Conv2d
        self.transposed: Any = nn.ConvTranspose3d if dim == 3 else nn.ConvTranspose2d
        self._norm: Any = nn.BatchNorm3d if dim == 3 else nn.BatchNorm2d

    def norm(self, channels: int) -> nn.Module:
        # The published network normalises with the statistics of the batch at test time too.
        layer: nn.Module = self._norm(channels, track_running_stats=False)
        return layer

    def padded(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        """Return a convolution that repeats the border, and normalisation."""
        pad = max(kernel - stride, 0)
        border = (pad // 2, pad - pad // 2) * self.dim
        return nn.Sequential(
            _Replicate(border),
            self.convolution(inputs, outputs, kernel, stride),
            self.norm(outputs),
        )


class _Replicate(nn.Module):
    """Repeat the border of a volume."""

    def __init__(self, border: tuple[int, ...]) -> None:
        super().__init__()
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.border, mode="replicate")


class Residual(nn.Module):
    """Two convolutions, a shortcut that is added to their result, and a ReLU."""

    def __init__(self, layers: _Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # As published: the module has the shortcut's parameters even if the shortcut is not used.
        self.used = inputs != outputs or stride != 1
        self.shortcut = layers.padded(inputs, outputs, 1, stride)
        self.first = layers.padded(inputs, outputs, 3, stride)
        self.second = layers.padded(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return a volume whose sides are divided by the stride."""
        shortcut = self.shortcut(x) if self.used else x
        return functional.relu(shortcut + self.second(self.first(x)))


class Network(nn.Module):
    """The published network, sizes as in ``UResNetConfig``; ``reps`` is fixed at two."""

    def __init__(self, dim: int, config: UResNetConfig) -> None:
        super().__init__()
        layers = _Layers(dim)
        widths = [config.filters * 2**level for level in range(config.depth + 1)]
        self.unit = 2**config.depth
        self.stem = nn.Sequential(layers.padded(config.in_channels, widths[0], 3), nn.ReLU())
        self.encoder = nn.ModuleList(
            nn.Sequential(Residual(layers, fine, coarse, 2), Residual(layers, coarse, coarse, 1))
            for fine, coarse in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for fine, coarse in reversed(list(itertools.pairwise(widths))):
            self.up.append(
                nn.Sequential(
                    layers.transposed(coarse, fine, 3, stride=2, padding=1, output_padding=1),
                    layers.norm(fine),
                    nn.ReLU(),
                )
            )
            self.decoder.append(
                nn.Sequential(Residual(layers, coarse, fine, 1), Residual(layers, fine, fine, 1))
            )
        self.tail = nn.Sequential(
            layers.padded(widths[0], widths[0], 3),
            nn.ReLU(),
            layers.padded(widths[0], config.classes, 3),
        )

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Volume:
        """Scatter the features into a zero volume that every stride divides."""
        rounded = -(-spatial_size // self.unit) * self.unit
        grid = dense.Grid(sites.long(), (batch_size, *[rounded] * (sites.shape[1] - 1)))
        return Volume(grid.scatter(features), grid.sites)

    def forward(self, x: Volume) -> Tensor:
        """Return the logits of the sites, (N, classes), rows in input order."""
        volume = self.stem(x.values)
        skips = []
        for level in self.encoder:
            skips.append(volume)
            volume = level(volume)
        for up, level in zip(self.up, self.decoder, strict=True):
            volume = level(torch.cat([up(volume), skips.pop()], 1))
        volume = self.tail(volume)
        features: Tensor = volume.movedim(1, -1)[x.sites.unbind(1)]
        return features


class Backend(dense.Backend):
    """Torch's dense convolutions, with the published network."""

    name = "dense-study"

    def network(self, config: UResNetConfig) -> Network:
        """Return the published network."""
        return Network(self.dim, config)

    def with_features(self, x: Any, features: Tensor) -> Any:
        """Scatter new features; a dense volume has no maps that could be reused."""
        values = torch.zeros_like(x.values, dtype=features.dtype).movedim(1, -1)
        return Volume(values.index_put(x.sites.unbind(1), features).movedim(-1, 1), x.sites)
