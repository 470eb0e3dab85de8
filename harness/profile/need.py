"""What a layer needs at least: operations by the pairs of its kernel map, and bytes of its rows.

The pairs are counted from the sites alone, whatever maps an engine builds.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from harness.profile.instrument import INPUT, LOSS, OPTIMISER, OUTPUT, kind_of
from harness.profile.ranges import Key
from harness.run.engine_interface import Block, Kind, Layer, Level, UResNet

INDEX_BYTES = 4
"""Of a row's number in a kernel map, and of a coordinate."""

LABEL_BYTES = 8
PARAMETER_BYTES = 4
MOMENTS = 2
"""Of Adam, for every parameter."""

FIRST = "stem"
"""The layer that sees the events."""


class Grid(NamedTuple):
    """How many sites a level has, and how many pairs its submanifold map has at kernel 3."""

    sites: int
    pairs: int


def pyramid(sites: np.ndarray, depth: int) -> list[Grid]:
    """Count sites and pairs of every level.

    Parameters
    ----------
    sites : ndarray
        (N, 1 + dim) integers of at least 0, the batch index first; no site twice.
    depth : int
        Levels; each halves the coordinates of the one before.
    """
    found = []
    for _ in range(depth):
        found.append(Grid(len(sites), submanifold_pairs(sites)))
        sites = np.unique(np.concatenate([sites[:, :1], sites[:, 1:] // 2], 1), axis=0)
    return found


def submanifold_pairs(sites: np.ndarray, kernel_size: int = 3) -> int:
    """Count the pairs of an odd, centred kernel: sites, ordered, within its reach of each other.

    Each pair of neighbours counts twice, each site once with itself.
    """
    if not len(sites):
        return 0
    reach, dim = kernel_size // 2, sites.shape[1] - 1
    side = int(sites[:, 1:].max()) + 1 + 2 * reach  # no step leads to another row of the volume
    steps = np.array([side**axis for axis in range(dim, -1, -1)], dtype=np.int64)
    keys = np.sort(sites.astype(np.int64) @ steps)
    offsets = itertools.product(range(-reach, reach + 1), repeat=dim)
    ahead = [step for step in offsets if step > (0,) * dim]
    neighbours = 0
    for step in ahead:
        wanted = keys + int(np.dot(steps[1:], step))
        places = np.searchsorted(keys, wanted)
        places[places == len(keys)] = 0
        neighbours += int((keys[places] == wanted).sum())
    return len(keys) + 2 * neighbours


@dataclass(frozen=True)
class Need:
    """What one layer needs in one direction; None where it has no meaning."""

    level: int | None = None
    sites: int | None = None
    flops: int | None = None
    bytes: int | None = None


class Needs:
    """The needs of a network's layers.

    Parameters
    ----------
    network : nn.Module
        A network of the contract's layers; of any other, only loss and optimiser are known.
    grids : sequence of Grid
        Of every level.
    dim : int
        Spatial dimensions.
    classes : int
        Numbers a site that the loss reads.
    item : int
        Bytes of a number in the rows.
    fused : collection of str
        Kinds of layers whose rows the engine never writes: they need no bytes of their own.
    """

    def __init__(
        self,
        network: Any,
        grids: Sequence[Grid],
        dim: int,
        classes: int,
        item: int = 4,
        fused: Collection[str] = (),
    ) -> None:
        self._grids = grids
        self._dim = dim
        self._item = item
        self._fused = fused
        self._known: dict[Key, Need] = {}
        parameters = sum(value.numel() for value in network.parameters())
        # Adam reads parameter, gradient and moments, and writes all but the gradient.
        moved = (2 * (1 + MOMENTS) + 1) * PARAMETER_BYTES * parameters
        self._known[OPTIMISER] = Need(bytes=moved)
        rows = grids[0].sites
        self._rows(LOSS, 0, rows * (item * classes + LABEL_BYTES), rows * item * classes)
        for name, module in network.named_modules():
            level = name.split(".").count("below")
            if isinstance(module, Layer):
                self._layer(name, module, level + name.endswith("up_norm"))
            elif isinstance(module, Block):
                key = Key(f"{name}.add", "add", "forward")
                self._rows(key, level, 3 * self._size(level, module.norm2.in_channels), None)
            elif isinstance(module, Level) and module.below is not None:
                key = Key(f"{name}.join", "join", "forward")
                self._rows(key, level, 4 * self._size(level, module.down.in_channels), None)
        if isinstance(network, UResNet):
            for key, channels in ((INPUT, network.config.in_channels), (OUTPUT, classes)):
                moved = 2 * self._size(0, channels)
                self._rows(key, 0, moved, moved)

    def of(self, key: Key) -> Need:
        """Return what a range needs; nothing is known of gaps and of an engine's own layers."""
        return self._known.get(key, Need())

    def _size(self, level: int, channels: int) -> int:
        """Return the bytes of some features at every site of a level."""
        return self._grids[level].sites * channels * self._item

    def _rows(self, key: Key, level: int, forward: int, backward: int | None) -> None:
        """Note a layer that moves rows and does not multiply."""
        sites = self._grids[level].sites
        plain = key.kind not in self._fused
        self._known[key] = Need(level, sites, None, forward if plain else None)
        self._known[key._replace(direction="backward")] = Need(
            level, sites, None, backward if plain else None
        )

    def _layer(self, name: str, layer: Layer, level: int) -> None:
        key = Key(name, kind_of(layer.kind), "forward")
        if layer.kind is Kind.NORM:
            rows = self._size(level, layer.in_channels)
            self._rows(key, level, 2 * rows, 3 * rows)
            return
        if layer.kind is Kind.ORDINARY:  # its sites grow: they are not those of the events
            return
        rows_in, rows_out, pairs = connection(layer.kind, level, self._grids)
        channels = layer.in_channels * layer.out_channels
        flops = 2 * pairs * channels
        weights = layer.kernel_size**self._dim * channels * self._item
        read, written = rows_in * layer.in_channels, rows_out * layer.out_channels
        read, written = read * self._item, written * self._item
        self._known[key] = Need(level, rows_out, flops, read + written + weights)
        if name == FIRST:  # nobody asks for the gradient of the events
            back, moved = flops, written + read + weights
        else:
            back, moved = 2 * flops, written + 2 * read + 2 * weights
        self._known[key._replace(direction="backward")] = Need(level, rows_out, back, moved)
        table = (rows_in * (1 + self._dim) + 2 * pairs) * INDEX_BYTES
        self._known[key._replace(kind="map")] = Need(level, rows_out, None, table)


def connection(kind: Kind, level: int, grids: Sequence[Grid]) -> tuple[int, int, int]:
    """Return the rows in, the rows out and the pairs of a layer's kernel map.

    A strided convolution and its inverse connect each fine site with its one parent.
    """
    fine = grids[level].sites
    if kind is Kind.SUBMANIFOLD:
        return fine, fine, grids[level].pairs
    if kind is Kind.STRIDED:
        return fine, grids[level + 1].sites, fine
    if kind is Kind.INVERSE:
        return grids[level + 1].sites, fine, fine
    return fine, fine, fine
