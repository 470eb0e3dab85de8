"""Batch normalisation over rows by torch, for engines that have none of their own."""

from __future__ import annotations

from torch import Tensor, nn

from backends.uresnet import NORM_EPS, NORM_MOMENTUM


def batch_norm(channels: int) -> nn.BatchNorm1d:
    """Return batch normalisation with the study's constants."""
    return nn.BatchNorm1d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


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
