"""Capabilities of an engine, as a dataclass and as JSON; this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16")


class Unsupported(ValueError):
    """The engine lacks a requested operation, which the message names."""


class Kind(StrEnum):
    """The kinds of layer that have weights.

    ``submanifold`` : output sites are the input sites, odd kernel.
    ``strided`` : kernel 2, stride 2; a coarse site is active if any of its children is.
    ``inverse`` : from the output sites of a strided convolution back to its input sites.
    ``ordinary`` : odd kernel, stride 1; every site that the kernel reaches becomes active.
    ``linear`` : the same matrix at every site (a 1x1x1 convolution).
    ``norm`` : batch normalisation over sites.
    """

    SUBMANIFOLD = "submanifold"
    STRIDED = "strided"
    INVERSE = "inverse"
    ORDINARY = "ordinary"
    LINEAR = "linear"
    NORM = "norm"


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of an engine on this machine, as ``probe()`` of its module returns them.

    Attributes
    ----------
    version : str
        The engine's own version.
    devices : tuple of str
        Subset of ``("cpu", "cuda")``.
    precisions : mapping
        Device -> precision policies that the engine implements there.
    dims : tuple of int
        Subset of ``(2, 3)``.
    kinds : frozenset of Kind
        Kinds of layers that it has.
    training : bool
        Whether it computes gradients.
    options : mapping
        Option name -> allowed values, the default first.
    missing : str
        Operations of the UResNet that it lacks; empty if none.
    network : str
        The network that it computes: ``uresnet`` for every engine that can be compared with the
        float64 reference, another name for an engine with a network of its own.
    note : str
        A remark that is needed to interpret its numbers; may be empty.
    """

    version: str
    devices: tuple[str, ...]
    precisions: Mapping[str, tuple[str, ...]]
    dims: tuple[int, ...] = (2, 3)
    kinds: frozenset[Kind] = frozenset(Kind) - {Kind.ORDINARY}
    training: bool = True
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: str = ""
    network: str = "uresnet"
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the capabilities as JSON values."""
        return asdict(self) | {"kinds": sorted(self.kinds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Capabilities:
        """Create capabilities from the values of ``to_json``."""
        per_name = {
            key: {name: tuple(some) for name, some in values[key].items()}
            for key in ("precisions", "options")
        }
        return cls(
            **{
                **values,
                **per_name,
                "devices": tuple(values["devices"]),
                "dims": tuple(values["dims"]),
                "kinds": frozenset(Kind(kind) for kind in values["kinds"]),
            }
        )
