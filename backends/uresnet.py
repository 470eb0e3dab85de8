"""The UResNets of the 2018 study and of SPINE, built from the layers of any engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from backends.contract import Backend, Kind, NormConfig


@dataclass(frozen=True)
class UResNetConfig:
    """A UResNet; the study's is the default.

    Attributes
    ----------
    filters : int
        Channels at the finest level; level l has ``(l + 1) * filters``.
    depth : int
        Number of levels.
    reps : int
        Residual blocks per level on each side.
    classes : int
        Outputs per site.
    in_channels : int
        Input features per site.
    slope : float
        Factor of negative values in the activations, 0 for ReLU.
    eps, momentum : float
        Of the batch normalisation, as in ``torch.nn.BatchNorm1d``.
    """

    filters: int = 16
    depth: int = 5
    reps: int = 2
    classes: int = 5
    in_channels: int = 1
    slope: float = NormConfig.slope
    eps: float = NormConfig.eps
    momentum: float = NormConfig.momentum

    def channels(self, level: int) -> int:
        """Return the width of a level."""
        return (level + 1) * self.filters


class EngineLayer(nn.Module):
    """A layer of an engine, with the properties needed to exchange its weights."""

    def __init__(
        self, native: nn.Module, kind: Kind, in_channels: int, out_channels: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.native = native
        self.kind = kind
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size

    def forward(self, x: Any) -> Any:
        """Apply the engine's layer."""
        return self.native(x)


class _Builder:
    """Makes the layers of one network on one backend."""

    def __init__(self, backend: Backend, config: UResNetConfig) -> None:
        self.backend = backend
        self.config = config

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> EngineLayer:
        native = self.backend.convolution(kind, in_channels, out_channels, kernel_size, level)
        return EngineLayer(native, kind, in_channels, out_channels, kernel_size)

    def norm(self, channels: int) -> EngineLayer:
        config = self.config
        native = self.backend.norm(NormConfig(channels, config.slope, config.eps, config.momentum))
        return EngineLayer(native, Kind.NORM, channels, channels, 1)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> EngineLayer:
        native = self.backend.linear(in_channels, out_channels, bias)
        return EngineLayer(native, Kind.LINEAR, in_channels, out_channels, 1)


class Block(nn.Module):
    """Pre-activated residual block: x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, build: _Builder, in_channels: int, out_channels: int, level: int) -> None:
        super().__init__()
        self.backend = build.backend
        self.shortcut = (
            None if in_channels == out_channels else build.linear(in_channels, out_channels, False)
        )
        self.norm1 = build.norm(in_channels)
        self.conv1 = build.convolution(Kind.SUBMANIFOLD, in_channels, out_channels, 3, level)
        self.norm2 = build.norm(out_channels)
        self.conv2 = build.convolution(Kind.SUBMANIFOLD, out_channels, out_channels, 3, level)

    def forward(self, x: Any) -> Any:
        """Return a tensor of the engine on the same sites."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.backend.add(self.conv2(self.norm2(self.conv1(self.norm1(x)))), shortcut)


class Level(nn.Module):
    """One level of the U: blocks, down, the next level, up, concatenation, blocks."""

    def __init__(self, build: _Builder, config: UResNetConfig, level: int) -> None:
        super().__init__()
        self.backend = build.backend
        width = config.channels(level)
        self.encoder = nn.Sequential(
            *[Block(build, width, width, level) for _ in range(config.reps)]
        )
        self.below: Level | None = None
        if level + 1 < config.depth:
            coarse = config.channels(level + 1)
            self.down_norm = build.norm(width)
            self.down = build.convolution(Kind.STRIDED, width, coarse, 2, level)
            self.below = Level(build, config, level + 1)
            self.up_norm = build.norm(coarse)
            self.up = build.convolution(Kind.INVERSE, coarse, width, 2, level)
            widths = [2 * width] + [width] * (config.reps - 1)
            self.decoder = nn.Sequential(*[Block(build, w, width, level) for w in widths])

    def forward(self, x: Any) -> Any:
        """Return a tensor of the engine on the same sites."""
        x = self.encoder(x)
        if self.below is None:
            return x
        below = self.below(self.down(self.down_norm(x)))
        return self.decoder(self.backend.cat(x, self.up(self.up_norm(below))))


class UResNet(nn.Module):
    """A U-shaped residual network of submanifold convolutions (arXiv:1903.05663).

    Parameters
    ----------
    backend : Backend
        The engine that provides every layer.
    config : UResNetConfig
        Its size; the study's is the default.
    """

    def __init__(self, backend: Backend, config: UResNetConfig) -> None:
        super().__init__()
        build = _Builder(backend, config)
        self.backend = backend
        self.config = config
        m = config.filters
        self.stem = build.convolution(Kind.SUBMANIFOLD, config.in_channels, m, 3, 0)
        self.unet = Level(build, config, 0)
        self.norm = build.norm(m)
        self.linear = build.linear(m, config.classes, True)

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Make the engine's tensor, its volume rounded up so that every stride divides it.

        Engines drop border sites or fail where a stride does not divide the spatial size.
        """
        unit = 2 ** (self.config.depth - 1)
        rounded = -(-spatial_size // unit) * unit
        return self.backend.tensor(sites, features, rounded, batch_size)

    def forward(self, x: Any) -> Tensor:
        """Return the logits, (N, classes), rows in input order."""
        return self.backend.features(self.apply_layers(x))

    def apply_layers(self, x: Any) -> Any:
        """Return the logits as a tensor of the engine."""
        return self.linear(self.norm(self.unet(self.stem(x))))

    def layers(self) -> Iterator[tuple[str, EngineLayer]]:
        """Yield the canonical name of each layer that owns weights, and the layer."""
        for name, module in self.named_modules():
            if isinstance(module, EngineLayer):
                yield name, module
