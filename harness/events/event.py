"""One event: active voxels of an image, their energies and their classes."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput


class Label(IntEnum):
    """The kind of particle that deposited the energy of a voxel.

    The first five are the classes of the study, in the order of the public data set's
    ``fivetypes``. The others occur in other formats only and belong to no class.

    ===========  =====  =========  ==========================  =================================
    member       value  fivetypes  larcv2 and PILArNet-M       meaning
    ===========  =====  =========  ==========================  =================================
    HIP              0          0                              proton: heavily ionising particle
    MIP              1          1                              muon, pion: minimum ionising
    SHOWER           2          2  0 (shower)                  electromagnetic shower
    DELTA            3          3  3 (delta)                   delta ray
    MICHEL           4          4  2 (Michel)                  Michel electron
    LOW_ENERGY       5             4 (low-energy scatter)      isolated small deposit
    TRACK            6             1 (track)                   HIP or MIP without distinction
    GHOST            7             5 (ghost)                   artefact of the reconstruction
    UNKNOWN          8             6 (unknown)                 not labelled
    ===========  =====  =========  ==========================  =================================
    """

    HIP = 0
    MIP = 1
    SHOWER = 2
    DELTA = 3
    MICHEL = 4
    LOW_ENERGY = 5
    TRACK = 6
    GHOST = 7
    UNKNOWN = 8


LARGEST_SIZE = 1 << 16
"""Most voxels per side of an image, so that voxel numbers and statistics fit into 64 bits."""

CLASSES = 5
"""Number of classes of the study: the labels below this value."""


@dataclass(frozen=True, eq=False)
class Event:
    """The active voxels of one image.

    Attributes
    ----------
    voxels : ndarray of int32, shape (N, dim)
        Voxel coordinates, ``0 <= voxels < size``, sorted with the last axis fastest; no voxel
        appears twice. ``dim`` is 3, or 2 for a projection.
    energies : ndarray of float32, shape (N,)
        Deposited energy in MeV.
    labels : ndarray of uint8, shape (N,)
        ``Label`` of every voxel.
    size : int
        Voxels per side of the image.
    name : str
        Origin of the event: file and entry.
    """

    voxels: NDArray[np.int32]
    energies: NDArray[np.float32]
    labels: NDArray[np.uint8]
    size: int
    name: str

    def __len__(self) -> int:
        return len(self.energies)

    def __repr__(self) -> str:
        shape = " x ".join([str(self.size)] * self.dim)
        return f"<Event {self.name}: {len(self):,} active voxels of {shape}>"

    @property
    def dim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return int(self.voxels.shape[1])

    @property
    def occupancy(self) -> float:
        """Fraction of the image's voxels that are active."""
        return len(self) / float(self.size) ** self.dim


def checked_event(
    voxels: NDArray[Any], energies: NDArray[Any], labels: NDArray[Any], size: int, name: str
) -> Event:
    """Build an event from arrays of any numeric type after a check of their content.

    Parameters
    ----------
    voxels : ndarray, shape (N, dim)
    energies : ndarray, shape (N,)
        MeV.
    labels : ndarray, shape (N,)
        ``Label`` values.
    size : int
        Voxels per side.
    name : str
        File and entry, for the messages.

    Returns
    -------
    Event
        The event, with sorted voxels.

    Raises
    ------
    BadInput
        If shapes disagree, a voxel lies outside the image or appears twice, an energy is not
        finite, or a label is unknown.
    """
    if voxels.ndim != 2 or voxels.shape[1] not in (2, 3):
        raise BadInput(f"{name}: voxels have shape {voxels.shape} where (N, 2) or (N, 3) is needed")
    if len(energies) != len(voxels):
        raise BadInput(
            f"{name}: {len(energies)} energies do not match {len(voxels)} voxels; "
            "the file is damaged or its products belong to different images"
        )
    if len(labels) != len(voxels):
        raise BadInput(
            f"{name}: {len(labels)} labels do not match {len(voxels)} voxels; "
            "choose the label product that belongs to these voxels"
        )
    if not 1 <= size <= LARGEST_SIZE:
        raise BadInput(f"{name}: {size} voxels per side are not within 1 to {LARGEST_SIZE}")
    # Written so that NaN counts as outside.
    outside = ~((voxels >= 0) & (voxels < size)).all(axis=1)
    if outside.any():
        first = tuple(voxels[np.argmax(outside)].tolist())
        raise BadInput(
            f"{name}: {int(outside.sum())} voxels, first {first}, lie outside the image "
            f"of {size} voxels per side"
        )
    voxels = voxels.astype(np.int32, copy=False)
    with np.errstate(over="ignore"):  # an overflow gives infinity, which is refused below
        energies = energies.astype(np.float32, copy=False)
    if not np.isfinite(energies).all():
        raise BadInput(
            f"{name}: voxel {int(np.argmin(np.isfinite(energies)))} has no finite energy"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() <= max(Label)):
        wrong = labels[(labels < 0) | (labels > max(Label))][0]
        raise BadInput(f"{name}: label {wrong} is none of 0 to {int(max(Label))}")
    keys = voxel_keys(voxels, size)
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys)
        keys, voxels, energies, labels = keys[order], voxels[order], energies[order], labels[order]
    repeated = int((keys[1:] == keys[:-1]).sum())
    if repeated:
        raise BadInput(
            f"{name}: {repeated} voxels appear more than once; the file is damaged, make it anew"
        )
    return Event(
        np.ascontiguousarray(voxels, np.int32),
        np.ascontiguousarray(energies, np.float32),
        np.ascontiguousarray(labels, np.uint8),
        int(size),
        name,
    )


def voxel_keys(voxels: NDArray[np.integer[Any]], size: int) -> NDArray[np.int64]:
    """Number every voxel uniquely, last axis fastest.

    Parameters
    ----------
    voxels : ndarray of int, shape (N, dim)
        Coordinates within ``[0, size)``.
    size : int
        Voxels per side.

    Returns
    -------
    ndarray of int64, shape (N,)
    """
    keys = np.zeros(len(voxels), np.int64)
    for axis in range(voxels.shape[1]):
        keys *= size
        keys += voxels[:, axis]
    return keys


def voxels_of_keys(keys: NDArray[np.int64], size: int, dim: int = 3) -> NDArray[np.int32]:
    """Invert ``voxel_keys``: coordinates of shape (N, dim) from keys of shape (N,)."""
    voxels = np.empty((len(keys), dim), np.int32)
    rest = keys
    for axis in reversed(range(dim)):
        rest, voxels[:, axis] = np.divmod(rest, size)
    return voxels
