"""Sites and kernel maps of all levels of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from backends.contract import site_keys
from backends.sscn.compiling import call_untraced, traceable
from backends.sscn.deferred import DeferredGraph
from backends.sscn.kernel_map import KernelMap, axis_bits, demorton

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Level:
    """The sites of one level, as sorted Morton keys, and the kernel maps built on them so far."""

    keys: Tensor
    spatial_size: int
    submanifold: dict[int, KernelMap] = field(default_factory=dict)
    down: KernelMap | None = None


class CoordinateManager:
    """The levels of one batch, shared by all tensors on them; maps are built at their first use.

    Parameters
    ----------
    keys : Tensor
        (N,) int64, the sorted Morton keys of the finest level.
    order : Tensor or None
        (N,) int64, the input row of each sorted row, where the sites are those of an input.
    spatial_size : int
        Voxels per side of the finest level.
    dim : int
        2 or 3.
    graph : DeferredGraph
        Records the layers that use the maps; its kernel set builds them.
    depth : int
        Number of levels of the network that will use the maps, 0 if it is not known.

    Attributes
    ----------
    planned : tuple or None
        What plans keep with these sites: the plan that has run on them and the maps that it built,
        or the sizes and addresses of the maps.
    """

    def __init__(
        self,
        keys: Tensor,
        order: Tensor | None,
        spatial_size: int,
        dim: int,
        graph: DeferredGraph,
        depth: int = 0,
    ) -> None:
        self.levels = [Level(keys, spatial_size)]
        self.order = order
        self.dim = dim
        self.graph = graph
        self._depth = depth
        self.planned: tuple[Any, Any] | None = None
        self._input_orders: dict[int, tuple[Tensor, Tensor]] = {}

    def rows(self, level: int) -> int:
        """Return the number of sites of a level."""
        return len(self.levels[level].keys)

    def submanifold(self, level: int, kernel_size: int) -> KernelMap:
        """Return the map from the sites of a level to themselves."""
        if level == 0 and self._depth and self.graph.kernels.builds_network_maps:
            self._build_network(kernel_size)
        at = self.levels[level]
        if kernel_size not in at.submanifold:
            at.submanifold[kernel_size] = self._build(
                self.graph.kernels.submanifold_map,
                at.keys, self.dim, kernel_size, at.spatial_size,
            )  # fmt: skip
        return at.submanifold[kernel_size]

    def down(self, level: int) -> KernelMap:
        """Return the map from a level to the next coarser one, which is added if it is missing."""
        at = self.levels[level]
        if at.down is None:
            if at.spatial_size < 2:
                raise ValueError("a volume of one voxel per side has no coarser level")
            keys, at.down = self._build(self.graph.kernels.strided_map, at.keys, self.dim)
            self.levels.append(Level(keys, (at.spatial_size + 1) // 2))
        return at.down

    def ordinary(self, level: int, kernel_size: int) -> tuple[CoordinateManager, KernelMap]:
        """Return a manager of the sites that a kernel reaches, and the map to them."""
        at = self.levels[level]
        keys, kernel_map = self._build(
            self.graph.kernels.ordinary_map, at.keys, self.dim, kernel_size, at.spatial_size
        )
        return CoordinateManager(keys, None, at.spatial_size, self.dim, self.graph), kernel_map

    def input_order(self, level: int) -> tuple[Tensor, Tensor]:
        """Return the order of a level's rows outside of the engine, and its inverse.

        The finest level of an input has the order of the input; all other sites are in ascending
        order of (batch, x, y, z).
        """
        if level in self._input_orders:
            return self._input_orders[level]
        kernels = traceable(self.graph.kernels)
        order = self.order if level == 0 else None
        if order is None:
            at = self.levels[level]
            sites = demorton(at.keys, axis_bits(at.spatial_size), self.dim)
            order = kernels.inverted(site_keys(sites, at.spatial_size).argsort())
        self._input_orders[level] = order, kernels.inverted(order)
        return self._input_orders[level]

    def _build_network(self, kernel_size: int) -> None:
        """Build the maps of all levels together."""
        at = self.levels[0]
        levels = min(self._depth, axis_bits(at.spatial_size) + 1)
        self._depth = 0
        if len(self.levels) > 1:
            return
        found = self._build(
            self.graph.kernels.network_maps, at.keys, self.dim, kernel_size, at.spatial_size, levels
        )
        size = at.spatial_size
        for level, (keys, submanifold, down) in enumerate(found):
            if level:
                size = (size + 1) // 2
                self.levels.append(Level(keys, size))
            self.levels[level].submanifold[kernel_size] = submanifold
            self.levels[level].down = down

    def _build(self, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        observer = self.graph.observer
        if observer is not None:
            function = observer.within("map")(function)
        return call_untraced(function, *arguments, **named)
