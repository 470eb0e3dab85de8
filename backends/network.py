"""The network that an engine is measured with: the one UResNet, or one that it brings itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backends import weights
from backends.contract import Backend
from backends.stack import Stack
from backends.uresnet import UResNet, UResNetConfig


def build(backend: Backend, config: UResNetConfig) -> Any:
    """Return the network of an engine; it has ``tensor`` and ``forward`` as ``UResNet`` has.

    An engine that computes another function says so in its capabilities and has a method
    ``network(config)``.
    """
    own = getattr(backend, "network", None)
    return UResNet(backend, config) if own is None else own(config)


def has_truth(network: nn.Module) -> bool:
    """Tell whether a network computes a function that the truth is known of."""
    return isinstance(network, (UResNet, Stack))


def reset(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put the canonical weights into a network, or draw torch's defaults for one of its own."""
    if isinstance(network, (UResNet, Stack)):
        weights.load(network, values)
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in network.modules():
            draw = getattr(module, "reset_parameters", None)
            if draw is not None:
                draw()


def parameters(network: nn.Module) -> int:
    """Count the numbers that a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())
