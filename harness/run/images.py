"""Images of a batch: the same events in other orientations and places, one per cold call.

A kernel map or a result that an engine retains from an earlier call is of no use for an image: its
sites have not been presented before. All images of a batch have the same number of sites, of sites
at each coarser level and, unless an event was wrapped around, of pairs in each kernel map.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
import torch
from numpy.typing import NDArray

from harness.events.cube import symmetries
from harness.run.engine_interface import SparseBatch
from harness.spec.cell import STACKS, Cell

CHECK_SEED = 1
"""Seed of the features of the last check."""

MAX_REPEATS = 100
"""Images in a row that may be repetitions before one of them is used."""


def coarsest_stride(cell: Cell) -> int:
    """Return the stride of a cell's coarsest level relative to its input, in voxels."""
    if cell.layer:
        return 1 if cell.layer_kind == "submanifold" else 2
    return 1 if cell.phase in STACKS else int(2 ** (cell.model.depth - 1))


def with_other_features(batch: SparseBatch) -> SparseBatch:
    """Return a batch with the same sites and its features in a seeded random order."""
    order = np.random.default_rng(CHECK_SEED).permutation(len(batch.sites))
    return replace(batch, features=batch.features[torch.from_numpy(order)].contiguous())


@dataclass(frozen=True)
class _Place:
    """A symmetry of the cube and a shift, in voxels."""

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    shift: tuple[int, ...]


class _Places:
    """The seeded sequence of places of one event, without its own.

    All orientations come first, then shifts within the volume, then shifts that wrap around.

    Parameters
    ----------
    low, high : array of int
        The least and the largest coordinate of the event on each axis.
    size : int
        Voxels per side of the volume.
    stride : int
        Unit of the shifts, in voxels.
    random : numpy.random.Generator
        Source of the order.
    """

    def __init__(
        self,
        low: NDArray[np.int64],
        high: NDArray[np.int64],
        size: int,
        stride: int,
        random: np.random.Generator,
    ) -> None:
        listed = symmetries(len(low))
        self._turned = [listed[i] for i in 1 + random.permutation(len(listed) - 1)]
        self._symmetries = listed
        self._stride = stride
        axes = np.array([axes for axes, _ in listed])
        flips = np.array([flips for _, flips in listed])
        below = np.where(flips, size - 1 - high[axes], low[axes]) // stride
        above = np.where(flips, low[axes], size - 1 - high[axes]) // stride
        self._first = -below  # (symmetries, dim), in units of the stride
        self._steps = below + above + 1
        self._ends = np.cumsum(self._steps.prod(axis=1))
        self._periods = max(size // stride, 1)
        self._within = _Shuffled(int(self._ends[-1]), random)
        self._wrapped = _Shuffled(len(listed) * self._periods ** len(low), random)

    def __getitem__(self, index: int) -> _Place:
        """Return one place; indices beyond the last start again."""
        if index < len(self._turned):
            axes, flips = self._turned[index]
            return _Place(axes, flips, (0,) * len(axes))
        index -= len(self._turned)
        if index < len(self._within):
            found = self._within[index]
            which = int(np.searchsorted(self._ends, found, side="right"))
            rest = found - (int(self._ends[which - 1]) if which else 0)
            steps, first = self._steps[which], self._first[which]
        else:
            found = self._wrapped[(index - len(self._within)) % len(self._wrapped)]
            which, rest = divmod(found, self._periods ** self._steps.shape[1])
            steps, first = (
                np.full(self._steps.shape[1], self._periods),
                np.zeros_like(self._first[0]),
            )
        shift = []
        for size, start in zip(steps.tolist(), first.tolist(), strict=True):
            rest, step = divmod(rest, size)
            shift.append((start + step) * self._stride)
        axes, flips = self._symmetries[which]
        return _Place(axes, flips, tuple(shift))


class _Shuffled:
    """The numbers below a limit in a pseudorandom order that needs no memory."""

    def __init__(self, limit: int, random: np.random.Generator) -> None:
        self._limit = limit
        self._start = int(random.integers(limit))
        self._factor: int = next(
            factor
            for factor in chain(random.integers(1, limit + 1, size=64).tolist(), count(1))
            if math.gcd(factor, limit) == 1
        )

    def __len__(self) -> int:
        return self._limit

    def __getitem__(self, index: int) -> int:
        return (self._start + index * self._factor) % self._limit


class BatchImages:
    """Images of a batch, each event of which is turned and moved on its own.

    Parameters
    ----------
    batch : SparseBatch
        On the CPU; its tensors are copied.
    stride : int
        Stride of the coarsest level, in voxels. Shifts are multiples of it, which keeps the number
        of sites at each level where it divides the size of the volume.
    seed : int
        Seed of the order: every engine is given the same images.

    Attributes
    ----------
    check : SparseBatch
        The image for the last check, which ``take`` never returns.
    """

    def __init__(self, batch: SparseBatch, stride: int, seed: int) -> None:
        self._batch = replace(
            batch,
            sites=batch.sites.clone(),
            features=batch.features.clone(),
            labels=None if batch.labels is None else batch.labels.clone(),
        )
        self._events = self._batch.sites[:, 0].long().numpy()
        self._voxels = self._batch.sites[:, 1:].long().numpy()
        keys = self._keys(self._voxels)
        self._sorted = bool((np.diff(keys) > 0).all())
        shape = (batch.batch_size, batch.dim)
        low = np.full(shape, batch.spatial_size - 1)
        high = np.zeros(shape, dtype=np.int64)
        np.minimum.at(low, self._events, self._voxels)
        np.maximum.at(high, self._events, self._voxels)
        random = np.random.default_rng(seed)
        self._places = [
            _Places(least, largest, batch.spatial_size, stride, random)
            for least, largest in zip(low, np.maximum(low, high), strict=True)
        ]
        self._index = 0
        self._presented = {_digest(self._batch.sites)}
        self.check = self._next()

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        batch = self._batch
        tensors = (batch.sites, batch.features, batch.labels)
        return sum(each.numel() * each.element_size() for each in tensors if each is not None)

    def take(self, number: int) -> list[SparseBatch]:
        """Return the next images, none of which was returned before.

        Parameters
        ----------
        number : int
            How many.
        """
        return [self._next() for _ in range(number)]

    def _next(self) -> SparseBatch:
        for repeats in count():
            image = self._image(self._index)
            self._index += 1
            found = _digest(image.sites)
            if found not in self._presented or repeats == MAX_REPEATS:
                self._presented.add(found)
                return image
        raise AssertionError("unreachable")

    def _image(self, index: int) -> SparseBatch:
        batch, size = self._batch, self._batch.spatial_size
        places = [each[index] for each in self._places]
        axes = np.array([place.axes for place in places])[self._events]
        flips = np.array([place.flips for place in places])[self._events]
        shift = np.array([place.shift for place in places])[self._events]
        voxels = np.take_along_axis(self._voxels, axes, axis=1)
        voxels = (np.where(flips, size - 1 - voxels, voxels) + shift) % size
        order = np.argsort(self._keys(voxels)) if self._sorted else np.arange(len(voxels))
        sites = np.concatenate([self._events[:, None], voxels], axis=1)[order]
        rows = torch.from_numpy(order)
        return replace(
            batch,
            sites=torch.from_numpy(sites).to(torch.int32).contiguous(),
            features=batch.features[rows].contiguous(),
            labels=None if batch.labels is None else batch.labels[rows],
        )

    def _keys(self, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return numbers in the lexicographic order of the sites."""
        keys = self._events.copy()
        for axis in range(voxels.shape[1]):
            keys = keys * self._batch.spatial_size + voxels[:, axis]
        return keys


def _digest(sites: torch.Tensor) -> bytes:
    return hashlib.blake2b(sites.numpy().tobytes(), digest_size=16).digest()
