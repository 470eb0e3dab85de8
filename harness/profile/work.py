"""Necessary work of each layer: operations of the pairs in its kernel map, and bytes of its rows.

The pairs are counted from the sites, independently of the maps that an engine builds.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from harness.profile.instrument import INPUT, LOSS, OPTIMISER, OUTPUT, kind_of
from harness.profile.ranges import RangeKey
from harness.run.engine_interface import Block, EngineLayer, Kind, Level, UResNet

INDEX_BYTES = 4
"""Size of a row index in a kernel map, and of a coordinate."""

LABEL_BYTES = 8
PARAMETER_BYTES = 4
MOMENTS = 2
"""Number of moments that Adam stores per parameter."""

FIRST = "stem"
"""Name of the first layer. The gradient of its input is not needed."""


class LevelSize(NamedTuple):
    """Number of sites of a level, and of pairs in its submanifold map with kernel size 3."""

    sites: int
    pairs: int


def level_sizes(sites: np.ndarray, depth: int) -> list[LevelSize]:
    """Count the sites and pairs of every level.

    Parameters
    ----------
    sites : ndarray
        (N, 1 + dim) distinct rows of integers of at least 0, the batch index first.
    depth : int
        Number of levels. Each halves the coordinates of the one before.
    """
    found = []
    for _ in range(depth):
        found.append(LevelSize(len(sites), submanifold_pairs(sites)))
        sites = np.unique(np.concatenate([sites[:, :1], sites[:, 1:] // 2], 1), axis=0)
    return found


def submanifold_pairs(sites: np.ndarray, kernel_size: int = 3) -> int:
    """Count the pairs of sites that an odd, centred kernel connects.

    Two neighbours are two pairs, one in each direction. Each site is a pair with itself.
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
class LayerWork:
    """Necessary work of one layer in one direction; None if a number does not apply."""

    level: int | None = None
    sites: int | None = None
    flops: int | None = None
    bytes: int | None = None


class NetworkWork:
    """Necessary work of all layers of a network.

    Parameters
    ----------
    network : nn.Module
        A network of the contract's layers. For other networks, only the loss and the optimiser
        are counted.
    levels : sequence of LevelSize
        Sites and pairs of each level.
    dim : int
        Spatial dimensions.
    classes : int
        Logits per site.
    bytes_per_number : int
        Size of a number in the rows between layers, and of a weight.
    fused : collection of str
        Kinds of layers whose rows the engine does not store. No bytes are counted for them.
    """

    def __init__(
        self,
        network: Any,
        levels: Sequence[LevelSize],
        dim: int,
        classes: int,
        bytes_per_number: int = 4,
        fused: Collection[str] = (),
    ) -> None:
        self._levels = levels
        self._dim = dim
        self._bytes_per_number = bytes_per_number
        self._fused = fused
        self._work: dict[RangeKey, LayerWork] = {}
        parameters = sum(value.numel() for value in network.parameters())
        # Adam reads parameter, gradient and moments, and writes all but the gradient.
        moved = (2 * (1 + MOMENTS) + 1) * PARAMETER_BYTES * parameters
        self._work[OPTIMISER] = LayerWork(bytes=moved)
        rows = levels[0].sites
        self._rows(
            LOSS,
            0,
            rows * (bytes_per_number * classes + LABEL_BYTES),
            rows * bytes_per_number * classes,
        )
        for name, module in network.named_modules():
            level = name.split(".").count("below")
            if isinstance(module, EngineLayer):
                self._layer(name, module, level + name.endswith("up_norm"))
            elif isinstance(module, Block):
                key = RangeKey(f"{name}.add", "add", "forward")
                self._rows(key, level, 3 * self._size(level, module.norm2.in_channels), None)
            elif isinstance(module, Level) and module.below is not None:
                key = RangeKey(f"{name}.join", "join", "forward")
                self._rows(key, level, 4 * self._size(level, module.down.in_channels), None)
        if isinstance(network, UResNet):
            for key, channels in ((INPUT, network.config.in_channels), (OUTPUT, classes)):
                moved = 2 * self._size(0, channels)
                self._rows(key, 0, moved, moved)

    def of(self, key: RangeKey) -> LayerWork:
        """Return the work of a range; empty for time between layers and for unknown layers."""
        return self._work.get(key, LayerWork())

    def _size(self, level: int, channels: int) -> int:
        """Return the bytes of a level's features with a number of channels."""
        return self._levels[level].sites * channels * self._bytes_per_number

    def _rows(self, key: RangeKey, level: int, forward: int, backward: int | None) -> None:
        """Set the work of a layer that moves rows and does not multiply."""
        sites = self._levels[level].sites
        plain = key.kind not in self._fused
        self._work[key] = LayerWork(level, sites, None, forward if plain else None)
        self._work[key._replace(direction="backward")] = LayerWork(
            level, sites, None, backward if plain else None
        )

    def _layer(self, name: str, layer: EngineLayer, level: int) -> None:
        key = RangeKey(name, kind_of(layer.kind), "forward")
        if layer.kind is Kind.NORM:
            rows = self._size(level, layer.in_channels)
            self._rows(key, level, 2 * rows, 3 * rows)
            return
        if layer.kind is Kind.ORDINARY:  # its output has more sites than the events
            return
        rows_in, rows_out, pairs = map_size(layer.kind, level, self._levels)
        channels = layer.in_channels * layer.out_channels
        flops = 2 * pairs * channels
        weights = layer.kernel_size**self._dim * channels * self._bytes_per_number
        read, written = rows_in * layer.in_channels, rows_out * layer.out_channels
        read, written = read * self._bytes_per_number, written * self._bytes_per_number
        self._work[key] = LayerWork(level, rows_out, flops, read + written + weights)
        if name == FIRST:  # the gradient of the events is not needed
            back, moved = flops, written + read + weights
        else:
            back, moved = 2 * flops, written + 2 * read + 2 * weights
        self._work[key._replace(direction="backward")] = LayerWork(level, rows_out, back, moved)
        table = (rows_in * (1 + self._dim) + 2 * pairs) * INDEX_BYTES
        self._work[key._replace(kind="map")] = LayerWork(level, rows_out, None, table)


def map_size(kind: Kind, level: int, levels: Sequence[LevelSize]) -> tuple[int, int, int]:
    """Return the input rows, the output rows and the pairs of a layer's kernel map.

    A strided convolution and its inverse connect each fine site with its one parent.
    """
    fine = levels[level].sites
    if kind is Kind.SUBMANIFOLD:
        return fine, fine, levels[level].pairs
    if kind is Kind.STRIDED:
        return fine, levels[level + 1].sites, fine
    if kind is Kind.INVERSE:
        return levels[level + 1].sites, fine, fine
    return fine, fine, fine
