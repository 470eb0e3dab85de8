"""Layouts of convolution weights that several engines share.

The canonical layout is torch's: (out, in, *k), and (in, out, *k) for the inverse convolution.
Weights of linear layers stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from backends.capabilities import Kind


def to_channels_last(kind: Kind, weight: Tensor) -> Tensor:
    """Turn the canonical layout into (out, *k, in)."""
    if kind is Kind.LINEAR:
        return weight
    return (weight.transpose(0, 1) if kind is Kind.INVERSE else weight).movedim(1, -1)


def from_channels_last(kind: Kind, weight: Tensor) -> Tensor:
    """Turn (out, *k, in) into the canonical layout."""
    if kind is Kind.LINEAR:
        return weight
    weight = weight.movedim(-1, 1)
    return weight.transpose(0, 1) if kind is Kind.INVERSE else weight


def to_offsets_first(kind: Kind, weight: Tensor) -> Tensor:
    """Turn the canonical layout into (K, in, out); the last axis of the kernel varies fastest."""
    if kind is Kind.LINEAR:
        return weight
    if kind is not Kind.INVERSE:
        weight = weight.transpose(0, 1)
    return weight.flatten(2).permute(2, 0, 1)


def from_offsets_first(kind: Kind, weight: Tensor) -> Tensor:
    """Turn (K, in, out) into (out, in, K), or (in, out, K) for the inverse convolution."""
    if kind is Kind.LINEAR:
        return weight
    return weight.permute(1, 2, 0) if kind is Kind.INVERSE else weight.permute(2, 1, 0)
