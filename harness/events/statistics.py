"""Statistics of events that determine the work of a sparse convolution."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, Label, voxel_keys

STRIDES = (1, 2, 4, 8, 16, 32)
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)


@dataclass(frozen=True)
class Statistics:
    """Means over the events of a set that have at least one voxel.

    Attributes
    ----------
    size, dim : int
        Of the images.
    events : int
        Number of events with at least one voxel.
    empty : int
        Number of events without.
    voxels : float
        Active voxels per event.
    occupancy : float
        Fraction of the image that is active.
    neighbours : float
        Active voxels in the 3x3x3 (2D: 3x3) neighbourhood of an active voxel, itself included.
    sites : tuple of float
        Sites per event at each of ``STRIDES``.
    classes : tuple of float
        Share of all voxels that each ``Label`` has.
    quantiles : tuple of float
        Voxel energies in MeV at each of ``QUANTILES``.
    energy : float
        MeV per event.
    voxels_per_mev : float
        All voxels over all energy; NaN where the energies add up to nothing.
    """

    size: int
    dim: int
    events: int
    empty: int
    voxels: float
    occupancy: float
    neighbours: float
    sites: tuple[float, ...]
    classes: tuple[float, ...]
    quantiles: tuple[float, ...]
    energy: float
    voxels_per_mev: float


def summarise(events: Iterable[Event]) -> Statistics:
    """Compute the statistics of events of one size.

    Raises
    ------
    BadInput
        If there is no event with a voxel, or the events differ in size or dimension.
    """
    shape: tuple[int, int] | None = None
    counts: list[int] = []
    empty = 0
    neighbours = 0
    sites = np.zeros(len(STRIDES))
    classes = np.zeros(len(Label))
    energies: list[NDArray[np.float32]] = []
    for event in events:
        if shape not in (None, (event.size, event.dim)):
            raise BadInput(f"{event.name} differs in size from the events before; choose one size")
        shape = (event.size, event.dim)
        if not len(event):
            empty += 1
            continue
        counts.append(len(event))
        neighbours += count_neighbours(event.voxels, event.size)
        sites += [count_sites(event.voxels, event.size, stride) for stride in STRIDES]
        classes += np.bincount(event.labels, minlength=len(Label))
        energies.append(event.energies)
    if shape is None or not counts:
        raise BadInput(f"there is no voxel in {empty} events; choose others")
    voxels = sum(counts)
    energy = np.concatenate(energies)
    total = float(energy.sum(dtype=np.float64))
    return Statistics(
        size=shape[0],
        dim=shape[1],
        events=len(counts),
        empty=empty,
        voxels=voxels / len(counts),
        occupancy=voxels / len(counts) / float(shape[0]) ** shape[1],
        neighbours=neighbours / voxels,
        sites=tuple((sites / len(counts)).tolist()),
        classes=tuple((classes / voxels).tolist()),
        quantiles=tuple(np.quantile(energy, QUANTILES).tolist()),
        energy=total / len(counts),
        voxels_per_mev=voxels / total if total > 0 else math.nan,
    )


def count_neighbours(voxels: NDArray[np.int32], size: int) -> int:
    """Count ordered pairs of active voxels at most one apart along every axis, and self-pairs."""
    bordered = size + 2
    keys = np.sort(voxel_keys(voxels + 1, bordered))
    dim = voxels.shape[1]
    pairs = len(keys)
    for offset in product((-1, 0, 1), repeat=dim):
        shift = 0
        for component in offset:
            shift = shift * bordered + component
        # Each pair is found once in each direction; look along half of the directions.
        if shift > 0:
            pairs += 2 * int(np.isin(keys + shift, keys, assume_unique=True).sum())
    return pairs


def count_sites(voxels: NDArray[np.int32], size: int, stride: int) -> int:
    """Count the sites that remain after down-sampling by ``stride``."""
    return len(np.unique(voxel_keys(voxels // stride, size)))
