"""Canonical weights, the same for every engine, and their conversion to and from each engine.

Canonical layouts are torch's own: convolutions (out, in, kx, ky, kz), the inverse convolution
as in ConvTranspose (in, out, kx, ky, kz), linear layers (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backends.contract import Backend, Kind, NormConfig
from backends.uresnet import EngineLayer, UResNet, UResNetConfig

Weights = dict[str, Tensor]

SETTINGS = ("slope", "eps", "momentum")
"""Fields of ``UResNetConfig`` that do not follow from shapes.

Canonical weights hold those that differ from the study's as entries of one float64 number.
"""

DEEPEST = 24
"""The largest number of levels of a UResNet."""


class InvalidWeights(ValueError):
    """A file of weights cannot be read or written, or holds no weights of a UResNet."""


# Mean number of taps that meet a site on detector events; sets the scale of initial weights.
_OCCUPIED = {Kind.SUBMANIFOLD: 16.0, Kind.STRIDED: 3.8, Kind.INVERSE: 1.0, Kind.ORDINARY: 16.0}
_MEAN_SQUARE_ENERGY = 0.06  # MeV^2, over the sites of simulated events


def weight_shape(layer: EngineLayer, dim: int) -> tuple[int, ...]:
    """Return the canonical shape of a layer's ``weight``."""
    if layer.kind is Kind.NORM:
        return (layer.out_channels,)
    if layer.kind is Kind.LINEAR:
        return (layer.out_channels, layer.in_channels)
    channels = (layer.out_channels, layer.in_channels)
    if layer.kind is Kind.INVERSE:
        channels = channels[::-1]
    return channels + (layer.kernel_size,) * dim


class _MeanSquare:
    """Stand-in for an engine: its tensors are the expected mean squares of the features.

    A forward pass of the UResNet gives the mean square at the input of each norm. Used as running
    variance, it keeps the activations of an untrained network near one, so that 16-bit types
    neither overflow nor underflow.
    """

    name = "mean-square"

    def tensor(self, sites: Any, features: Any, spatial_size: Any, batch_size: Any) -> float:
        return _MEAN_SQUARE_ENERGY

    def features(self, x: float) -> float:
        return x

    def convolution(self, kind: Kind, cin: int, cout: int, kernel_size: int, level: int) -> Any:
        return _Constant(1.0)

    def norm(self, config: NormConfig) -> Any:
        return _NormInput(config.slope)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> Any:
        return nn.Identity()

    def add(self, a: float, b: float) -> float:
        return a + b

    def cat(self, a: float, b: float) -> float:
        return (a + b) / 2


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: float) -> float:
        return self.value


class _NormInput(nn.Module):
    """Stores the mean square of its input."""

    mean_square = 1.0

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: float) -> float:
        self.mean_square = x
        return _activated_mean_square(self.slope)


def _activated_mean_square(slope: float) -> float:
    """Return the mean square of a normalised feature after the activation; a ReLU keeps half."""
    return (1 + slope**2) / 2


def blank(config: UResNetConfig) -> UResNet:
    """Return a UResNet without an engine, for its list of layers."""
    return UResNet(_MeanSquare(), config)  # type: ignore[arg-type]


def shapes(config: UResNetConfig, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the canonical shape of each weight and running statistic by name."""
    found: dict[str, tuple[int, ...]] = {"linear.bias": (config.classes,)}
    for name, layer in blank(config).layers():
        shape = weight_shape(layer, dim)
        found[f"{name}.weight"] = shape
        if layer.kind is Kind.NORM:
            found |= {f"{name}.{part}": shape for part in ("bias", "running_mean", "running_var")}
    return found


def settings(config: UResNetConfig) -> Weights:
    """Return the settings of a network that canonical weights hold, as entries."""
    return {
        name: torch.tensor(getattr(config, name), dtype=torch.float64)
        for name in SETTINGS
        if getattr(config, name) != getattr(UResNetConfig, name)
    }


def initial(config: UResNetConfig, dim: int, seed: int = 0) -> Weights:
    """Draw the canonical weights of an untrained network.

    Parameters
    ----------
    config : UResNetConfig
        The network.
    dim : int
        2 or 3.
    seed : int
        Seed of the generator; the same seed gives the same bits on every machine.

    Returns
    -------
    dict
        Canonical name -> float32 tensor on the CPU. Convolutions are scaled as by He et al.
        (arXiv:1502.01852) with the mean fan-in on detector events.
    """
    generator = torch.Generator().manual_seed(seed)
    network = blank(config)
    network(network.tensor(torch.empty(0), torch.empty(0), 1, 1))
    weights: Weights = {}

    def normal(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    for name, layer in network.layers():
        shape = weight_shape(layer, dim)
        if layer.kind is Kind.NORM:
            weights[f"{name}.weight"] = 1 + normal(shape, 0.1)
            weights[f"{name}.bias"] = normal(shape, 0.1)
            weights[f"{name}.running_mean"] = normal(shape, 0.1)
            weights[f"{name}.running_var"] = torch.full(shape, float(layer.native.mean_square))  # type: ignore[arg-type]
        elif layer.kind is Kind.LINEAR:
            weights[f"{name}.weight"] = normal(shape, 1 / math.sqrt(layer.in_channels))
        else:
            square = _MEAN_SQUARE_ENERGY if name == "stem" else _activated_mean_square(config.slope)
            taps = min(_OCCUPIED[layer.kind], layer.kernel_size**dim)
            weights[f"{name}.weight"] = normal(
                shape, 1 / math.sqrt(square * taps * layer.in_channels)
            )
    weights["linear.bias"] = normal((config.classes,), 0.1)
    return weights


class Network(Protocol):
    """A network whose weights can be converted: it has an engine, and layers with names."""

    backend: Backend

    def layers(self) -> Iterator[tuple[str, EngineLayer]]:
        """Yield the canonical name of each layer that owns weights, and the layer."""
        ...


def load(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Copy canonical weights into an engine's network, in place.

    The entries ``SETTINGS`` are not used: they belong to the configuration of the network.

    Raises
    ------
    ValueError
        If a name is missing or unknown, or a shape differs.
    """
    backend = network.backend
    unused = set(weights).difference(SETTINGS)
    with torch.no_grad():
        for name, layer in network.layers():
            for part, native in backend.parameters(layer.native).items():
                key = f"{name}.{part}"
                if key not in weights:
                    raise ValueError(f"these weights have no {key}: they belong to another network")
                value = weights[key]
                expected = weight_shape(layer, backend.dim) if part == "weight" else native.shape
                if tuple(value.shape) != tuple(expected):
                    raise ValueError(
                        f"{key} has shape {tuple(value.shape)}, this network needs "
                        f"{tuple(expected)}"
                    )
                if part == "weight" and layer.kind is not Kind.NORM:
                    value = backend.to_native(layer.kind, value)
                native.copy_(value.reshape(native.shape))
                unused.discard(key)
    if unused:
        raise ValueError(f"this network has no {min(unused)}: the weights belong to another one")


def dump(network: Network) -> Weights:
    """Return the network's weights and running statistics in canonical layout, on the CPU."""
    return _collect(network, gradients=False)


def gradients(network: Network) -> Weights:
    """Return the gradients of all parameters in canonical layout, on the CPU.

    Raises
    ------
    ValueError
        If a parameter received no gradient.
    """
    return _collect(network, gradients=True)


def _collect(network: Network, *, gradients: bool) -> Weights:
    backend = network.backend
    collected: Weights = {}
    for name, layer in network.layers():
        for part, native in backend.parameters(layer.native).items():
            value = native
            if gradients:
                if not isinstance(native, nn.Parameter):
                    continue
                if native.grad is None:
                    raise ValueError(f"{backend.name} gave no gradient to {name}.{part}")
                value = native.grad
            value = value.detach()
            if part == "weight" and layer.kind is not Kind.NORM:
                value = backend.from_native(layer.kind, value)
                value = value.reshape(weight_shape(layer, backend.dim))
            collected[f"{name}.{part}"] = value.cpu().clone()
    return collected
