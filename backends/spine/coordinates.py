"""Coordinates of sparse tensors of SPINE: their maps, levels and look-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backends.contract import Unsupported, master_dtype
from backends.spine import engine as engines
from backends.spine.deferred import DeferredTensor
from backends.spine.engine import Engine

LEVELS = 6
"""Volumes are aligned to two to this power, so that this many strided convolutions divide them."""


class CoordinateManager:
    """All coordinate maps that were made from one tensor, in the order of their creation."""

    def __init__(self) -> None:
        self.maps: list[CoordinateMap] = []

    def find(self, coordinates: Tensor, stride: tuple[int, ...]) -> CoordinateMap:
        """Return the map with these coordinates in this order, a new one if there is none."""
        for known in self.maps:
            if known.stride == stride and torch.equal(known.coordinates, coordinates):
                return known
        return CoordinateMap(self, stride, Volume(coordinates, stride), 0, coordinates)

    def first(self, stride: tuple[int, ...]) -> CoordinateMap | None:
        """Return the first map with a stride."""
        return next((known for known in self.maps if known.stride == stride), None)


class Volume:
    """Sites of an input, and the engines' tensors on them and on their coarser levels.

    Parameters
    ----------
    coordinates : Tensor
        (N, 1 + dim) integers, multiples of the stride; the batch index first.
    stride : tuple of int
        Distance of neighbouring sites per axis; zero counts as one.
    """

    def __init__(self, coordinates: Tensor, stride: tuple[int, ...]) -> None:
        self.coordinates = coordinates
        self.stride = tuple(max(1, each) for each in stride)
        self._placed: dict[tuple[Engine, int], Any] = {}
        self._sites: tuple[Tensor, Tensor, int, int] | None = None

    @property
    def dim(self) -> int:
        """Number of spatial dimensions."""
        return self.coordinates.shape[1] - 1

    def _input(self) -> tuple[Tensor, Tensor, int, int]:
        """Return sites, the coordinates of their origin, the spatial size and the batch size."""
        if self._sites is None:
            sites = self.coordinates.to(torch.int32)
            if max(self.stride) > 1:
                step = sites.new_tensor((1, *self.stride))
                sites = sites.div(step, rounding_mode="floor")
            low, high = sites.amin(0), sites.amax(0)
            unit = 2**LEVELS
            origin = low.div(unit, rounding_mode="floor") * unit
            origin[0] = 0
            extent = high - origin + 1
            batch_size, *sizes = extent.tolist()
            spatial_size = -(-max(sizes) // unit) * unit
            self._sites = (sites - origin).contiguous(), origin, spatial_size, batch_size
        return self._sites

    def place(self, rows: Tensor, level: int) -> tuple[Engine, Any]:
        """Return the engine and its tensor with given features on the sites of a level."""
        engine = engines.of(rows, self.dim)
        if level == 0 and (engine, 0) not in self._placed:
            placed = self._tensor(engine, rows.contiguous())
            self._placed[engine, 0] = placed
            return engine, placed
        at = self._at(engine, level)
        return engine, engine.backend.with_features(at, rows.contiguous())

    def _tensor(self, engine: Engine, rows: Tensor) -> Any:
        """Return a new tensor of the engine on the sites of the input."""
        sites, _, spatial_size, batch_size = self._input()
        if engine.reverses_axes:
            sites = torch.cat([sites[:, :1], sites[:, 1:].flip(1)], 1)
        return engine.backend.tensor(sites, rows, spatial_size, batch_size)

    def _at(self, engine: Engine, level: int) -> Any:
        """Return the engine's tensor of a level with its sites as features.

        An engine has its own order of coarse sites. It is found by a strided convolution that sums
        the sites of the finer level: half of their mean, rounded down, is the coarse site.
        """
        if (engine, level) not in self._placed:
            dtype = master_dtype(engine.backend.precision)
            if level == 0:
                sites = self.coordinates
                placed = self._tensor(
                    engine, torch.ones(len(sites), 1, dtype=dtype, device=sites.device)
                )
            else:
                finer = self._at(engine, level - 1)
                sites = self._input()[0] if level == 1 else engine.backend.features(finer)
                rows = torch.cat([sites[:, : self.dim + 1], sites.new_ones(len(sites), 1)], 1)
                finer = engine.backend.with_features(finer, rows.to(dtype).contiguous())
                sums = engine.sums_of_children(finer, self.dim + 2, level - 1)
                totals = engine.backend.features(sums)
                means = totals[:, :-1] / totals[:, -1:]
                means[:, 1:] = (means[:, 1:] / 2).floor()
                placed = engine.backend.with_features(sums, means.contiguous())
            self._placed[engine, level] = placed
        return self._placed[engine, level]

    def coordinates_at(self, engine: Engine, level: int) -> Tensor:
        """Return the coordinates of a level in the engine's order."""
        if level == 0:
            return self.coordinates
        sites = engine.backend.features(self._at(engine, level)).round().to(torch.int32)
        _, origin, _, _ = self._input()
        step = sites.new_tensor((1, *(each * 2**level for each in self.stride)))
        offset = origin * sites.new_tensor((1, *self.stride))
        return (sites * step + offset).to(self.coordinates.dtype)


class CoordinateMap:
    """The coordinates of a sparse tensor; it serves SPINE as coordinate-map key too.

    Parameters
    ----------
    manager : CoordinateManager
        Takes the map into its list.
    stride : tuple of int
        Tensor stride per axis.
    volume : Volume
        The sites of the input.
    level : int
        Number of strided convolutions from the input.
    coordinates : Tensor or None
        (N, 1 + dim), where they are known.
    engine : Engine or None
        The engine whose order the rows of a coarser level have.
    """

    def __init__(
        self,
        manager: CoordinateManager,
        stride: tuple[int, ...],
        volume: Volume,
        level: int,
        coordinates: Tensor | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.manager = manager
        self.stride = stride
        self.volume = volume
        self.level = level
        self.finer: CoordinateMap | None = None
        self.unique: tuple[Tensor, Tensor] | None = None
        self._coordinates = coordinates
        self._deferred: DeferredTensor | None = None
        self._count = None if coordinates is None else len(coordinates)
        self._engine = engine
        self._coarser: CoordinateMap | None = None
        manager.maps.append(self)

    def get_tensor_stride(self) -> list[int]:
        """Return the tensor stride, as a key of MinkowskiEngine does."""
        return list(self.stride)

    @property
    def coordinates(self) -> Tensor:
        """The coordinates, (N, 1 + dim) integers."""
        if self._coordinates is None:
            assert self._engine is not None
            self._coordinates = self.volume.coordinates_at(self._engine, self.level)
        return self._coordinates

    @property
    def deferred(self) -> Tensor:
        """The coordinates, computed at their first use."""
        if self._coordinates is not None:
            return self._coordinates
        if self._deferred is None:
            self._deferred = DeferredTensor(self.count, lambda: self.coordinates)
        return self._deferred

    def count(self) -> int:
        """Return the number of rows."""
        if self._count is None:
            self._count = len(self.coordinates)
        return self._count

    def place(self, rows: Tensor) -> tuple[Engine, Any]:
        """Return the engine and its tensor with given features on these sites."""
        engine, placed = self.volume.place(rows, self.level)
        if self._engine is not None and self._engine is not engine:
            raise Unsupported("the type of features changes at the input level only")
        return engine, placed

    def coarser(self, engine: Engine, placed: Any = None) -> CoordinateMap:
        """Return the map of the next level.

        Parameters
        ----------
        engine : Engine
            The engine, which orders its rows.
        placed : optional
            The engine's tensor on its sites, where there is one.

        Raises
        ------
        Unsupported
            If the volume cannot be divided once more.
        """
        if self._coarser is None:
            stride = tuple(2 * each for each in self.stride)
            made = CoordinateMap(self.manager, stride, self.volume, self.level + 1, engine=engine)
            made.finer = self
            if placed is not None:
                made._count = engine.count(placed)
            self._coarser = made
        return self._coarser

    def coarser_if_made(self) -> CoordinateMap | None:
        """Return the map of the next level, if a strided convolution has made it."""
        return self._coarser

    def check_divisible(self) -> None:
        """Raise ``Unsupported`` if no strided convolution may follow."""
        if self.level >= LEVELS:
            raise Unsupported(
                f"this backend has at most {LEVELS} strided convolutions in succession"
            )


def lookup(coordinates: Tensor, queries: Tensor) -> Tensor:
    """Return the row of each query in coordinates without duplicates, -1 where it is absent.

    Parameters
    ----------
    coordinates : Tensor
        (N, D) integers.
    queries : Tensor
        (M, D) integers.
    """
    if len(coordinates) == 0 or len(queries) == 0:
        return torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    key = _keys(torch.cat([coordinates, queries.to(coordinates.dtype)]))
    known, order = key[: len(coordinates)].sort()
    asked = key[len(coordinates) :]
    place = torch.searchsorted(known, asked).clamp_(max=len(known) - 1)
    return torch.where(known[place] == asked, order[place], -1)


def _keys(coordinates: Tensor) -> Tensor:
    """Return a number per row, equal for equal rows and ascending with them."""
    columns = (coordinates.long() - coordinates.amin(0).long()).unbind(1)
    key = columns[0]
    for column in columns[1:]:
        key = key * (column.amax() + 1) + column
    return key


def unique(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Find duplicates.

    Returns
    -------
    first : Tensor
        (U,) the first row of each distinct coordinate, ascending.
    inverse : Tensor
        (N,) the place in ``first`` of each row's coordinate.
    """
    rows = len(coordinates)
    identity = torch.arange(rows, device=coordinates.device)
    key, order = _keys(coordinates).sort(stable=True)
    starts = torch.ones(rows, dtype=torch.bool, device=coordinates.device)
    starts[1:] = key[1:] != key[:-1]
    if bool(starts.all()):
        return identity, identity
    first = order[starts]
    group = starts.cumsum(0) - 1
    first, by_first = first.sort()
    rank = torch.empty_like(by_first)
    rank[by_first] = torch.arange(len(first), device=first.device)
    inverse = torch.empty_like(identity)
    inverse[order] = rank[group]
    return first, inverse


Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]


def _sum(rows: Tensor, first: Tensor, inverse: Tensor) -> Tensor:
    return rows.new_zeros(len(first), rows.shape[1]).index_add(0, inverse, rows)


def _mean(rows: Tensor, first: Tensor, inverse: Tensor) -> Tensor:
    count = torch.bincount(inverse, minlength=len(first)).unsqueeze(1)
    return _sum(rows, first, inverse) / count


def _first(rows: Tensor, first: Tensor, inverse: Tensor) -> Tensor:
    return rows[first]


REDUCTIONS: dict[str, Reduce] = {"sum": _sum, "mean": _mean, "first": _first}
"""What becomes of features with equal coordinates."""
