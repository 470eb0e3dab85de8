"""Batch normalisation over rows by torch, for engines that have none of their own."""

from __future__ import annotations

from torch import Tensor, nn

from backends.contract import NormConfig


def batch_norm(config: NormConfig) -> nn.BatchNorm1d:
    """Return the batch normalisation without its activation."""
    return nn.BatchNorm1d(config.channels, eps=config.eps, momentum=config.momentum)


def activation(config: NormConfig) -> nn.Module:
    """Return the activation; a ReLU keeps less memory for the gradient than a leaky one."""
    return nn.LeakyReLU(config.slope) if config.slope else nn.ReLU()


def norm_parameters(norm: nn.BatchNorm1d) -> dict[str, Tensor]:
    """Map canonical names to the parameters and buffers of a norm."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
