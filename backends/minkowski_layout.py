"""Layout of MinkowskiEngine's kernels: (K, in, out), the first spatial axis varies fastest."""

from __future__ import annotations

from torch import Tensor

from backends.capabilities import Kind


def from_canonical(kind: Kind, weight: Tensor) -> Tensor:
    """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out)."""
    if kind is not Kind.INVERSE:
        weight = weight.transpose(0, 1)
    spatial = range(weight.ndim - 1, 1, -1)
    return weight.permute(*spatial, 0, 1).flatten(0, weight.ndim - 3)


def to_canonical(kind: Kind, weight: Tensor, dim: int) -> Tensor:
    """Turn (K, in, out) into (out, in, *k), or (in, out, *k) for the inverse."""
    weight = to_reversed(kind, weight, dim)
    return weight.permute(0, 1, *range(dim + 1, 1, -1))


def to_reversed(kind: Kind, weight: Tensor, dim: int) -> Tensor:
    """Turn (K, in, out) into the canonical layout for sites whose spatial axes are reversed."""
    size = round(len(weight) ** (1 / dim))
    weight = weight.reshape(*[size] * dim, *weight.shape[1:])
    weight = weight.permute(dim, dim + 1, *range(dim))
    return weight if kind is Kind.INVERSE else weight.transpose(0, 1)
