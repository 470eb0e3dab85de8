"""The network that an engine is measured with: the UResNet, or one of the engine's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backends import weights
from backends.contract import Backend
from backends.convolution_chain import ConvolutionChain
from backends.spine_network import SpineNetwork
from backends.uresnet import UResNet, UResNetConfig

_CANONICAL = (UResNet, ConvolutionChain, SpineNetwork)
"""Networks that take the canonical weights, and whose function is therefore known."""


def build(backend: Backend, config: UResNetConfig) -> Any:
    """Return the network of an engine, which has ``tensor`` and ``forward`` like ``UResNet``.

    An engine that computes another function names it in its capabilities and has a method
    ``network(config)``.
    """
    own = getattr(backend, "network", None)
    return UResNet(backend, config) if own is None else own(config)


def has_reference(network: nn.Module) -> bool:
    """Return whether a float64 reference of a network can be computed."""
    return isinstance(network, _CANONICAL)


def reset(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load the canonical weights into a network, or initialise a network of the engine's own."""
    if isinstance(network, _CANONICAL):
        weights.load(network, values)  # type: ignore[arg-type]
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in network.modules():
            draw = getattr(module, "reset_parameters", None)
            if draw is not None:
                draw()


def parameters(network: nn.Module) -> int:
    """Count the trained parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
