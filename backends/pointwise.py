"""Layers that act on each row alone, by torch, for engines that have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backends.contract import NormConfig
from backends.norm import activation, batch_norm, norm_parameters


class Pointwise(nn.Module):
    """A torch layer on the features of an engine's tensor."""

    def __init__(
        self,
        layers: nn.Module,
        rows: Callable[[Any], Tensor],
        replace: Callable[[Any, Tensor], Any],
    ) -> None:
        super().__init__()
        self.layers = layers
        self.rows = rows
        self.replace = replace

    def forward(self, x: Any) -> Any:
        """Return the engine's tensor with the layer applied to its rows."""
        return self.replace(x, self.layers(self.rows(x)))


class PointwiseByTorch:
    """Base class with the part of the contract that acts on rows; engines add convolutions."""

    def rows(self, x: Any) -> Tensor:
        """Return the (N, C) features in the engine's own order."""
        raise NotImplementedError

    def replace(self, x: Any, rows: Tensor) -> Any:
        """Return ``x`` with other features in the engine's own order."""
        raise NotImplementedError

    def norm(self, config: NormConfig) -> nn.Module:
        """Return torch's normalisation and leaky ReLU on the rows."""
        layers = nn.Sequential(batch_norm(config), activation(config))
        return Pointwise(layers, self.rows, self.replace)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return torch's linear layer on the rows."""
        return Pointwise(nn.Linear(in_channels, out_channels, bias=bias), self.rows, self.replace)

    def add(self, a: Any, b: Any) -> Any:
        """Add the rows."""
        return self.replace(a, self.rows(a) + self.rows(b))

    def cat(self, a: Any, b: Any) -> Any:
        """Concatenate the rows."""
        return self.replace(a, torch.cat([self.rows(a), self.rows(b)], 1))


def pointwise_parameters(layer: Pointwise) -> dict[str, Tensor]:
    """Map canonical names to the parameters and buffers of a pointwise layer."""
    if isinstance(layer.layers, nn.Sequential):
        norm = layer.layers[0]
        assert isinstance(norm, nn.BatchNorm1d)
        return norm_parameters(norm)
    return dict(layer.layers.named_parameters())
