"""The sparse tensor that SPINE's layers pass on: features on a coordinate map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from backends.spine.coordinates import CoordinateManager, CoordinateMap, Volume, lookup
from backends.spine.deferred import DeferredTensor, computed
from backends.spine.engine import Engine


class PendingNorm(Protocol):
    """A batch normalisation that is not applied yet, because an activation may follow."""

    def apply(self) -> Tensor:
        """Return the normalised features."""
        ...

    def fuse(self, slope: float) -> SparseTensor | None:
        """Return the tensor after normalisation and leaky ReLU; None if the engine lacks it."""
        ...


class SparseTensor:
    """Features on the coordinates of a map: values, or a tensor of the engine, or a pending norm.

    Parameters
    ----------
    at : CoordinateMap
        The coordinates.
    rows : Tensor, optional
        (N, C) features in the order of the coordinates.
    placed : tuple, optional
        The engine and its tensor.
    norm : PendingNorm, optional
        Computes the features.
    """

    __slots__ = ("_norm", "_placed", "_rows", "at")

    def __init__(
        self,
        at: CoordinateMap,
        rows: Tensor | None = None,
        placed: tuple[Engine, Any] | None = None,
        norm: PendingNorm | None = None,
    ) -> None:
        self.at = at
        self._rows = rows
        self._placed = placed
        self._norm = norm

    @property
    def features(self) -> Tensor:
        """The features, (N, C), computed now if they were not."""
        if self._rows is None:
            if self._norm is not None:
                self._rows = self._norm.apply()
            else:
                engine, placed = self.placed
                self._rows = engine.backend.features(placed)
        return self._rows

    @property
    def placed(self) -> tuple[Engine, Any]:
        """The engine and its tensor."""
        if self._placed is None:
            plain = self.fused(1.0)
            self._placed = self.at.place(self.features) if plain is None else plain.placed
        return self._placed

    @property
    def is_placed(self) -> bool:
        """Whether an engine holds the features."""
        return self._placed is not None

    def fused(self, slope: float) -> SparseTensor | None:
        """Return the tensor after a leaky ReLU that the engine fuses with a pending norm."""
        return None if self._norm is None or self._rows is not None else self._norm.fuse(slope)

    def with_rows(self, rows: Tensor) -> SparseTensor:
        """Return other features on the same coordinates."""
        return SparseTensor(self.at, rows)

    # The names by which SPINE and its models read a tensor of MinkowskiEngine.

    @property
    def F(self) -> Tensor:
        """The features, computed at their first use."""
        if self._rows is not None:
            return self._rows
        return DeferredTensor(self.at.count, lambda: self.features)

    @property
    def C(self) -> Tensor:
        """The coordinates, (N, 1 + dim)."""
        return self.at.coordinates

    @property
    def D(self) -> int:
        """Number of spatial dimensions."""
        return len(self.at.stride)

    @property
    def tensor_stride(self) -> list[int]:
        """The tensor stride per axis."""
        return list(self.at.stride)

    @property
    def coordinate_map_key(self) -> CoordinateMap:
        """The coordinate map, as its own key."""
        return self.at

    @property
    def coordinate_manager(self) -> CoordinateManager:
        """The manager of the coordinate map."""
        return self.at.manager

    @property
    def device(self) -> torch.device:
        """The device of the features."""
        return self.features.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the features."""
        return self.features.dtype

    def __len__(self) -> int:
        return self.at.count()

    def __add__(self, other: SparseTensor) -> SparseTensor:
        if self.at is other.at:
            engine, a = self.placed
            _, b = other.placed
            return SparseTensor(self.at, placed=(engine, engine.backend.add(a, b)))
        return self._binary(other, torch.add)

    def __mul__(self, other: SparseTensor) -> SparseTensor:
        return self._binary(other, torch.mul)

    def __truediv__(self, other: SparseTensor) -> SparseTensor:
        return self._binary(other, torch.div)

    def _binary(
        self, other: SparseTensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> SparseTensor:
        """Combine features; of different maps on the union of their coordinates.

        As in MinkowskiEngine, the function is applied where the other tensor has a row, to zero
        where this tensor has none; elsewhere the features are kept.
        """
        if self.at is other.at:
            return self.with_rows(function(self.features, other.features))
        at = self.at
        if at.manager is not other.at.manager:
            raise ValueError("tensors of different coordinate managers cannot be combined")
        if at.stride != other.at.stride:
            raise ValueError(f"tensor strides differ: {at.stride} and {other.at.stride}")
        place = lookup(at.coordinates, other.at.coordinates)
        missing = place < 0
        coordinates = torch.cat([at.coordinates, other.at.coordinates[missing]])
        place = place.clone()
        place[missing] = torch.arange(at.count(), len(coordinates), device=place.device)
        padding = self.features.new_zeros(len(coordinates) - at.count(), self.features.shape[1])
        rows = torch.cat([self.features, padding])
        rows = rows.index_put((place,), function(rows[place], other.features))
        return SparseTensor(subset(at, coordinates), rows)

    def features_at_coordinates(self, queries: Tensor) -> Tensor:
        """Interpolate the features linearly at coordinates; sites that are absent count as zero."""
        stride = torch.tensor(
            (1, *(max(1, each) for each in self.at.stride)),
            dtype=queries.dtype,
            device=queries.device,
        )
        scaled = queries / stride
        scaled[:, 0] = scaled[:, 0].round()
        low = scaled.floor()
        fraction = (scaled - low)[:, 1:]
        step = stride.to(torch.int64)
        dim = fraction.shape[1]
        corners = itertools.product((0, 1), repeat=dim) if bool(fraction.any()) else [(0,) * dim]
        features = self.features
        padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
        total = features.new_zeros(len(queries), features.shape[1])
        for corner in corners:
            offset = torch.tensor((0, *corner), device=low.device)
            found = lookup(self.at.coordinates, (low.long() + offset) * step)
            upper = torch.tensor(corner, dtype=torch.bool, device=low.device)
            weight = torch.where(upper, fraction, 1 - fraction).prod(1, keepdim=True)
            total = total + weight.to(features.dtype) * padded[found]
        return total


def subset(at: CoordinateMap, coordinates: Tensor) -> CoordinateMap:
    """Return a map of other coordinates with the stride and manager of a map."""
    return CoordinateMap(at.manager, at.stride, Volume(coordinates, at.stride), 0, coordinates)


def concatenated(tensors: tuple[SparseTensor, ...]) -> SparseTensor:
    """Concatenate the features of tensors on one coordinate map."""
    first = tensors[0]
    if any(each.at is not first.at for each in tensors):
        raise ValueError("only tensors with the same coordinate map can be concatenated")
    engine, total = first.placed
    for other in tensors[1:]:
        total = engine.backend.cat(total, other.placed[1])
    return SparseTensor(first.at, placed=(engine, total))


def values(rows: Any) -> Tensor:
    """Return features that are given to this backend as an ordinary tensor."""
    found: Tensor = computed(rows)
    return found
