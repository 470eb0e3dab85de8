"""SPINE's layers without convolutions that change or reduce sites, by torch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backends.contract import Unsupported
from backends.spine.coordinates import CoordinateMap, lookup
from backends.spine.layers import Size, one_value
from backends.spine.tensor import SparseTensor, subset

_REDUCE = {"sum": "sum", "avg": "mean", "max": "amax"}


def reduced(rows: Tensor, group: Tensor, groups: int, how: str) -> Tensor:
    """Reduce rows by group: ``sum``, ``mean`` or ``amax``."""
    out = rows.new_zeros(groups, rows.shape[1])
    index = group.unsqueeze(1).expand_as(rows)
    return out.scatter_reduce(0, index, rows, how, include_self=False)


def _parents(at: CoordinateMap, coarser: CoordinateMap) -> Tensor:
    """Return the row of each site's parent."""
    step = at.coordinates.new_tensor((1, *coarser.stride))
    parents = at.coordinates.div(step, rounding_mode="floor") * step
    return lookup(coarser.coordinates, parents)


class _Pooling(nn.Module):
    """Pooling with kernel 2 and stride 2, or the identity with kernel 1 and stride 1."""

    mode: ClassVar[str]

    def __init__(
        self,
        kernel_size: Size = -1,
        stride: Size = 1,
        dilation: Size = 1,
        kernel_generator: Any = None,
        expand_coordinates: bool = False,
        dimension: int | None = None,
    ) -> None:
        super().__init__()
        if dimension is None:
            raise ValueError("pooling needs its dimension")
        sizes = (
            one_value("kernel size", kernel_size, dimension),
            one_value("stride", stride, dimension),
            one_value("dilation", dilation, dimension),
        )
        if sizes not in ((2, 2, 1), (1, 1, 1)) or kernel_generator or expand_coordinates:
            raise Unsupported(
                f"this backend has no {type(self).__name__} with kernel {sizes[0]}, stride "
                f"{sizes[1]}, dilation {sizes[2]}: it has kernel 2 with stride 2"
            )
        self.stride = sizes[1]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Reduce the features of the children of each coarse site."""
        if self.stride == 1:
            return x
        x.at.check_divisible()
        coarser = x.at.coarser(x.placed[0])
        group = _parents(x.at, coarser)
        return SparseTensor(
            coarser, reduced(x.features, group, coarser.count(), _REDUCE[self.mode])
        )


class MaxPooling(_Pooling):
    """Maximum of the children."""

    mode = "max"


class AvgPooling(_Pooling):
    """Mean of the children that are active."""

    mode = "avg"


class SumPooling(_Pooling):
    """Sum of the children."""

    mode = "sum"


class PoolingTranspose(_Pooling):
    """The features of the coarse site at each of its children."""

    mode = "sum"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Copy the features of the parents."""
        if self.stride == 1:
            return x
        finer = x.at.finer
        if finer is None:
            raise Unsupported("this backend has transposed pooling after strided layers only")
        return SparseTensor(finer, x.features[_parents(finer, x.at)])


class GlobalPooling(nn.Module):
    """One row per event: the mean by default.

    Parameters
    ----------
    mode : optional
        A member of MinkowskiEngine's ``PoolingMode``; its name says sum, average or maximum.
    """

    how: ClassVar[str] = "avg"

    def __init__(self, mode: Any = None) -> None:
        super().__init__()
        name = self.how if mode is None else str(getattr(mode, "name", mode)).lower()
        found = [each for each in _REDUCE if each in name]
        if not found:
            raise Unsupported(f"this backend has no global pooling of mode {mode}")
        self.mode = found[0]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Reduce the features of each event that has sites."""
        events, group = torch.unique(x.C[:, 0], return_inverse=True)
        rows = reduced(x.features, group, len(events), _REDUCE[self.mode])
        coordinates = x.C.new_zeros(len(events), x.C.shape[1])
        coordinates[:, 0] = events
        return SparseTensor(x.at.manager.find(coordinates, (0,) * x.D), rows)


class GlobalAvgPooling(GlobalPooling):
    """Mean of each event."""

    how = "avg"


class GlobalSumPooling(GlobalPooling):
    """Sum of each event."""

    how = "sum"


class GlobalMaxPooling(GlobalPooling):
    """Maximum of each event."""

    how = "max"


def spread(x: SparseTensor, of_events: SparseTensor) -> Tensor:
    """Return the row of its event for each site.

    Raises
    ------
    ValueError
        If an event of ``x`` has no row.
    """
    place = lookup(of_events.C[:, :1], x.C[:, :1])
    if bool((place < 0).any()):
        raise ValueError("an event has sites but no row of global features")
    return of_events.features[place]


class Broadcast(nn.Module):
    """The features of each event at all of its sites."""

    def forward(self, x: SparseTensor, of_events: SparseTensor) -> SparseTensor:
        """Copy the features of the events."""
        return x.with_rows(spread(x, of_events))


class BroadcastMultiplication(nn.Module):
    """Features times those of their event."""

    def forward(self, x: SparseTensor, of_events: SparseTensor) -> SparseTensor:
        """Multiply by the features of the events."""
        return x.with_rows(x.features * spread(x, of_events))


class InstanceNorm(nn.Module):
    """Normalisation over the sites of each event, with MinkowskiEngine's parameters."""

    EPS: ClassVar[float] = 1e-8

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(1, num_features))
        self.bias = nn.Parameter(torch.zeros(1, num_features))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalise the features of each event."""
        events, group = torch.unique(x.C[:, 0], return_inverse=True)
        rows = x.features
        centred = rows - reduced(rows, group, len(events), "mean")[group]
        variance = reduced(centred.square(), group, len(events), "mean")
        rows = centred * (variance + self.EPS).rsqrt()[group]
        return x.with_rows(rows * self.weight + self.bias)


class Pruning(nn.Module):
    """Removes sites."""

    def forward(self, x: SparseTensor, mask: Tensor) -> SparseTensor:
        """Keep the sites where a mask is true."""
        mask = mask.to(torch.bool)
        return SparseTensor(subset(x.at, x.C[mask]), x.features[mask])
