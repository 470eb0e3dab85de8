"""The contract of all engines: their interface, and the batch of events that is their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backends.capabilities import PRECISIONS, Capabilities, Kind, Unsupported

__all__ = [
    "PRECISIONS",
    "Backend",
    "Capabilities",
    "InvalidBatch",
    "Kind",
    "NormConfig",
    "SparseBatch",
    "Unsupported",
    "master_dtype",
    "site_keys",
]


def master_dtype(precision: str) -> torch.dtype:
    """Return the type of parameters and input features under a precision policy.

    The 16-bit policies keep float32 parameters and convert inside the engine's layers.
    """
    return torch.float64 if precision == "fp64" else torch.float32


@dataclass(frozen=True)
class NormConfig:
    """Batch normalisation followed by a leaky ReLU; by default those of the 2018 study.

    Attributes
    ----------
    channels : int
        Channels of the features.
    slope : float
        Factor of negative values: 0 for ReLU, 1 for no activation.
    eps, momentum : float
        As in ``torch.nn.BatchNorm1d``.
    """

    channels: int
    slope: float = 0.0
    eps: float = 1e-4
    momentum: float = 0.01


class InvalidBatch(ValueError):
    """Sites or features that are invalid for every engine."""


@dataclass(frozen=True)
class SparseBatch:
    """A batch of events as one sparse tensor, which the constructor checks.

    Parameters
    ----------
    sites : Tensor
        (N, 1 + dim) int32, contiguous; the batch index first, then the voxel indices.
    features : Tensor
        (N, C) float32, finite; for detector events C = 1, the deposited energy in MeV.
    labels : Tensor or None
        (N,) int64, the class of each site.
    spatial_size : int
        Voxels per side of the cube (or square).
    batch_size : int
        Number of events, empty ones included.

    Raises
    ------
    InvalidBatch
        If a shape or type is wrong, a site is outside the volume or given twice, or a feature is
        not finite.
    """

    sites: Tensor
    features: Tensor
    labels: Tensor | None
    spatial_size: int
    batch_size: int

    def __post_init__(self) -> None:
        sites, features = self.sites, self.features
        if sites.ndim != 2 or sites.shape[1] not in (3, 4) or sites.dtype != torch.int32:
            raise InvalidBatch(
                f"sites must be an int32 tensor of shape (N, 3) or (N, 4), not {sites.dtype} "
                f"of shape {tuple(sites.shape)}"
            )
        if not sites.is_contiguous() or not features.is_contiguous():
            raise InvalidBatch("sites and features must be contiguous: some engines misread views")
        if features.ndim != 2 or len(features) != len(sites) or features.dtype != torch.float32:
            raise InvalidBatch(
                f"features must be a float32 tensor of shape ({len(sites)}, C), not "
                f"{features.dtype} of shape {tuple(features.shape)}"
            )
        if self.labels is not None and self.labels.shape != (len(sites),):
            raise InvalidBatch(
                f"labels must have one entry for each of the {len(sites)} sites, not shape "
                f"{tuple(self.labels.shape)}"
            )
        if self.spatial_size < 1 or self.batch_size < 1:
            raise InvalidBatch("spatial_size and batch_size must be at least 1")
        if len(sites) == 0:
            return
        bounds = torch.tensor([self.batch_size] + [self.spatial_size] * self.dim).to(sites.device)
        if bool(((sites.amin(0) < 0) | (sites.amax(0) >= bounds)).any()):
            outside = (sites < 0).any(1) | (sites >= bounds).any(1)
            row = int(outside.nonzero()[0, 0])
            raise InvalidBatch(
                f"site {row} {sites[row].tolist()} lies outside a batch of {self.batch_size} "
                f"events of {self.spatial_size} voxels per side"
            )
        if not bool(torch.isfinite(features).all()):
            row = int((~torch.isfinite(features).all(1)).nonzero()[0, 0])
            raise InvalidBatch(f"site {row} {sites[row].tolist()} has a feature that is not finite")
        keys = site_keys(sites, self.spatial_size).sort().values
        if bool((keys[1:] == keys[:-1]).any()):
            raise InvalidBatch("the same site is given twice; sum or drop duplicates first")

    @property
    def dim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return self.sites.shape[1] - 1

    def to(self, device: str | torch.device) -> SparseBatch:
        """Return the same batch on another device."""
        moved = object.__new__(SparseBatch)  # without the checks, which have passed already
        labels = None if self.labels is None else self.labels.to(device)
        values = (self.sites.to(device), self.features.to(device), labels)
        for name, value in zip(("sites", "features", "labels"), values, strict=True):
            object.__setattr__(moved, name, value)
        object.__setattr__(moved, "spatial_size", self.spatial_size)
        object.__setattr__(moved, "batch_size", self.batch_size)
        return moved


def site_keys(sites: Tensor, spatial_size: int) -> Tensor:
    """Return a unique number per site, ascending in the order of (batch, x, y, z).

    Parameters
    ----------
    sites : Tensor
        (N, 1 + dim) integers, the batch index first.
    spatial_size : int
        Voxels per side. Keys of 64 bits number 2**63 voxels; a batch of 256 at 768 px has 2**37.

    Returns
    -------
    Tensor
        (N,) int64.
    """
    columns = sites.long().unbind(1)
    key = columns[0]
    for column in columns[1:]:
        key = key * spatial_size + column
    return key


class Backend(Protocol):
    """An engine for one device, precision and dimension.

    An engine's module defines ``probe() -> Capabilities`` and ``class Backend`` with the
    constructor ``Backend(dim, device, precision, options)``, which sets every arithmetic setting
    of the engine. The engine's own sparse tensor is opaque: the network only passes it from layer
    to layer. A ``cold`` pass times ``tensor``, all layers and ``features``; a ``warm`` one
    ``with_features`` instead of ``tensor``.

    Optional members, used if the engine has them:

    ``observe(observer)``
        A context manager during which the engine reports to a
        ``backends.profiling_hooks.ProfilingObserver``. For engines with functions that build kernel
        maps, ``observing_maps`` implements it. Without this member, a profile counts the
        construction of maps as part of the convolutions.
    ``fused``
        Set of the kinds of layers (``normalisation``, ``add``, ``join``) that the engine computes
        inside its convolutions. A profile counts no memory traffic for these.
    ``count(x)``
        The number of rows of ``features(x)``, without computing them. Without this member, the
        features are computed and counted.
    ``rows(x)``
        The (N, C) features in the engine's own order, computed if they were deferred. If an
        engine has it, single layers are measured without the reordering of ``features``.
    ``network(config)``
        The engine's own network, if it computes another function than the UResNet.
        ``Capabilities.network`` has its name.
    """

    name: str
    dim: int
    device: str
    precision: str

    def precision_readback(self) -> dict[str, Any]:
        """Return the current value of every arithmetic setting of the engine and of torch."""
        ...

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Return the engine's tensor with nothing cached: the first layers build the maps."""
        ...

    def with_features(self, x: Any, features: Tensor) -> Any:
        """Return new features on the sites of ``x``, with the maps cached so far.

        ``x`` may be of any level; the rows are in the order of ``features(x)``.
        """
        ...

    def features(self, x: Any) -> Tensor:
        """Return the (N, C) features; at the input level, rows are in input order.

        At a coarser level the order is the engine's, the same for all tensors on these sites.
        """
        ...

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution without bias; ``level`` is that of its finer sites, from 0 on."""
        ...

    def norm(self, config: NormConfig) -> nn.Module:
        """Return batch normalisation followed by a leaky ReLU."""
        ...

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return a linear layer: the same matrix at every site."""
        ...

    def add(self, a: Any, b: Any) -> Any:
        """Add the features of two tensors on the same sites."""
        ...

    def cat(self, a: Any, b: Any) -> Any:
        """Concatenate the features of two tensors on the same sites."""
        ...

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Map canonical names to the layer's own parameters and buffers.

        ``weight`` for convolutions; ``weight`` and ``bias`` for linear layers; ``weight``,
        ``bias``, ``running_mean`` and ``running_var`` for norms.
        """
        ...

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Convert a canonical ``weight`` to the engine's layout."""
        ...

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Convert a ``weight`` (or its gradient) in the engine's layout to the canonical one."""
        ...
