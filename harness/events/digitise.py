"""Conversion of simulated deposits along particle steps to the voxels of an image.

The recipe reproduces the statistics of the public data set: each step's energy is shared among
the voxels it crosses in proportion to the length in each, blurred over the 3x3x3 neighbourhood
with weights proportional to exp(-1.5 d^2) (d in voxels), and cut at 10 keV. Without the blur,
the images and all neighbourhoods that a convolution visits would have far too few voxels.

Only additions, multiplications, divisions and comparisons are used, in a fixed order, so that the
result does not depend on the processor.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.events.event import CLASSES, Event, voxels_of_keys

CUT_MEV = 0.01
"""Voxels with less energy are dropped."""

_SIDE = math.exp(-1.5)
# exp(-1.5 d^2) is the product of one such profile along each axis.
_PROFILE = {-1: _SIDE / (1 + 2 * _SIDE), 0: 1 / (1 + 2 * _SIDE), 1: _SIDE / (1 + 2 * _SIDE)}


@dataclass(frozen=True)
class Deposits:
    """Energy left along straight steps, in any order.

    Attributes
    ----------
    start, end : ndarray of float64, shape (D, 3)
        Ends of the step in voxels from the corner of the image; equal for a point.
    energy : ndarray of float64, shape (D,)
        MeV.
    event : ndarray of int64, shape (D,)
        Number of the event.
    label : ndarray of int64, shape (D,)
        One of the five classes.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    energy: NDArray[np.float64]
    event: NDArray[np.int64]
    label: NDArray[np.int64]


def digitise(deposits: Deposits, size: int, names: list[str], cut: float = CUT_MEV) -> list[Event]:
    """Turn deposits into events.

    Parameters
    ----------
    deposits : Deposits
        Energy outside the image is lost.
    size : int
        Voxels per side.
    names : list of str
        Name of every event; event ``i`` of the deposits becomes ``names[i]``.
    cut : float
        Least energy of a voxel in MeV.

    Returns
    -------
    list of Event
        In order; voxels sorted with the last axis fastest. A voxel has the class with the
        most energy in it; among equals, the first in the order of ``Label``.
    """
    step, fraction, voxel = split_at_voxel_faces(deposits.start, deposits.end)
    inside = ((voxel >= 0) & (voxel < size)).all(axis=1)
    step, fraction, voxel = step[inside], fraction[inside], voxel[inside]

    # Keys on an image with a border of one voxel, so that no blur wraps around; the label is the
    # lowest digit.
    bordered = size + 2
    keys = deposits.event[step]
    for axis in range(3):
        keys = keys * bordered + (voxel[:, axis] + 1)
    keys = keys * CLASSES + deposits.label[step]
    keys, energies = _merge(keys, deposits.energy[step] * fraction)
    for axis in (2, 1, 0):
        stride = CLASSES * bordered ** (2 - axis)
        keys, energies = _merge(
            np.concatenate([keys + shift * stride for shift in _PROFILE]),
            np.concatenate([energies * weight for weight in _PROFILE.values()]),
        )

    sites, energies, labels = _majority(keys, energies)
    event, inner = np.divmod(sites, bordered**3)
    voxels = voxels_of_keys(inner, bordered) - 1
    kept = (energies >= cut) & ((voxels >= 0) & (voxels < size)).all(axis=1)
    voxels, event = voxels[kept], event[kept]
    mev, classes = energies[kept].astype(np.float32), labels[kept].astype(np.uint8)
    edges = np.searchsorted(event, np.arange(len(names) + 1)).tolist()
    return [
        Event(voxels[a:b], mev[a:b], classes[a:b], size, name)
        for name, a, b in zip(names, edges, edges[1:], strict=False)
    ]


def split_at_voxel_faces(
    start: NDArray[np.float64], end: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Cut straight steps where they cross the faces of voxels.

    Parameters
    ----------
    start, end : ndarray, shape (D, 3)
        In voxels.

    Returns
    -------
    step : ndarray of int64, shape (P,)
        Which step every piece belongs to, ascending.
    fraction : ndarray of float64, shape (P,)
        Part of the step's length; the pieces of a step sum to one.
    voxel : ndarray of int64, shape (P, 3)
        The voxel that holds the piece.
    """
    count = len(start)
    first, last = np.floor(start), np.floor(end)
    steps = [np.arange(count)]
    positions = [np.zeros(count)]
    for axis in range(3):
        crossings = np.abs(last[:, axis] - first[:, axis]).astype(np.int64)
        step = np.repeat(np.arange(count), crossings)
        nth = np.arange(len(step)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
        forward = last[step, axis] > first[step, axis]
        face = first[step, axis] + np.where(forward, nth + 1, -nth)
        span = end[step, axis] - start[step, axis]
        steps.append(step)
        positions.append(np.clip((face - start[step, axis]) / span, 0.0, 1.0))
    step, position = np.concatenate(steps), np.concatenate(positions)
    order = np.lexsort((position, step))
    step, position = step[order], position[order]
    following = np.append(position[1:], 1.0)
    following[np.append(step[1:] != step[:-1], True)[: len(step)]] = 1.0
    fraction = following - position
    # A piece of no length lies on a face and belongs to no voxel; a point is kept whole.
    kept = fraction > 0
    step, position, fraction = step[kept], position[kept], fraction[kept]
    middle = position + 0.5 * fraction
    voxel = np.floor(start[step] + middle[:, None] * (end[step] - start[step]))
    return step, fraction, voxel.astype(np.int64)


def _merge(
    keys: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sum the values of equal keys; keys come back sorted."""
    # The stable sort recognises sorted runs: blurring a sorted image is a merge of three runs.
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[firsts], np.add.reduceat(values, firsts) if len(firsts) else values


def _majority(
    keys: NDArray[np.int64], energies: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Sum the classes of every site; return sites, total energies and the strongest class."""
    if not len(keys):
        return keys, energies, keys
    sites, labels = np.divmod(keys, CLASSES)
    is_first = np.append(True, sites[1:] != sites[:-1])
    firsts = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    total = np.add.reduceat(energies, firsts)
    strongest = np.flatnonzero(energies == np.maximum.reduceat(energies, firsts)[group])
    # np.unique returns the first of equals, which has the lowest label.
    _, first_strongest = np.unique(group[strongest], return_index=True)
    return sites[firsts], total, labels[strongest[first_strongest]]
