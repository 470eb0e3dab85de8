"""Reader of PILArNet-M HDF5 files, both revisions."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, Label, checked_event
from harness.events.event_set import FileSet, explained
from harness.events.hdf5 import checked_dataset
from harness.events.larcv_products import SHAPE_ORDER, translate_labels

SIZE = 768
"""Voxels per side of every image of the data set."""

_POINT_COLUMNS = 8
_PROTON = 4
# Events at the beginning from which the revision follows where nothing else indicates it.
_PROBED = 16
_TRACKS = {2: Label.MIP, 3: Label.MIP, _PROTON: Label.HIP}
"""Label of a track by its particle: 2 muon, 3 pion, 4 proton."""


def is_pilarnet_m(file: h5py.File) -> bool:
    """Return whether an HDF5 file has PILArNet-M's layout."""
    return "point" in file and "cluster" in file


class PilarnetMSet(FileSet):
    """Events of a PILArNet-M file.

    ``point[i]`` is flat, eight numbers per point: x, y, z (voxel indices), energy in MeV, and four
    that are not used here. ``cluster[i]`` is flat, five numbers per cluster (six in the second
    revision): number of points, fragment, group, interaction, semantic class and, in the second
    revision, the particle. Points are ordered by cluster. With the particle, tracks become HIP or
    MIP; without it they are ``Label.TRACK``.

    Parameters
    ----------
    path : Path

    Raises
    ------
    BadInput
        If the data sets differ in length or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sizes = (SIZE,)
        with explained(path, "the list of data sets"):
            self._file = h5py.File(path, "r")
            self._points, self._clusters = (
                checked_dataset(self._file, name, str(path), kinds="O")
                for name in ("point", "cluster")
            )
            for column in (self._points, self._clusters):
                base = h5py.check_vlen_dtype(column.dtype)
                if base is None or np.dtype(base).kind not in "uif":
                    raise BadInput(f"{path}: {column.name} holds no lists of numbers")
            lengths = len(self._points), len(self._clusters)
        if lengths[0] != lengths[1]:
            raise BadInput(
                f"{path}: {lengths[0]} events of points do not match {lengths[1]} of clusters; "
                "fetch the file again"
            )
        self._columns = self._cluster_columns()

    def __len__(self) -> int:
        return len(self._points)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events."""
        with explained(self._path, f"events {start} to {stop - 1}"):
            points, clusters = self._points[start:stop], self._clusters[start:stop]
        return [
            self._event(f"{self._path}, event {i}", np.asarray(flat), np.asarray(rows))
            for i, flat, rows in zip(range(start, stop), points, clusters, strict=True)
        ]

    def _event(self, name: str, flat: NDArray[Any], cluster_numbers: NDArray[Any]) -> Event:
        if flat.size % _POINT_COLUMNS:
            raise BadInput(f"{name}: {flat.size} numbers are no whole points of eight; fetch again")
        points = flat.reshape(-1, _POINT_COLUMNS)
        if not _fits(cluster_numbers, self._columns, len(points)):
            raise BadInput(
                f"{name}: the clusters' labels do not match its {len(points)} voxels; "
                "fetch the file again"
            )
        clusters = cluster_numbers.reshape(-1, self._columns)
        labels = translate_labels(clusters[:, 4], SHAPE_ORDER, name)
        if clusters.shape[1] == 6:
            for particle, label in _TRACKS.items():
                labels[(labels == Label.TRACK) & (clusters[:, 5] == particle)] = label
        voxels = points[:, :3]
        if not np.array_equal(voxels, np.floor(voxels)):
            raise BadInput(f"{name}: a coordinate is no whole number; the points are no voxels")
        return checked_event(
            voxels, points[:, 3], np.repeat(labels, clusters[:, 0].astype(np.int64)), SIZE, name
        )

    def _cluster_columns(self) -> int:
        """Find the revision of the whole file, since a single event may fit both."""
        if "cluster_extra" in self._file:
            return 6
        with explained(self._path, "the first events"):
            points, clusters = self._points[:_PROBED], self._clusters[:_PROBED]
        fitting = {
            columns: sum(
                _fits(np.asarray(rows), columns, len(flat) // _POINT_COLUMNS)
                for flat, rows in zip(points, clusters, strict=True)
            )
            for columns in (5, 6)
        }
        return 6 if fitting[6] > fitting[5] else 5


def _fits(numbers: NDArray[Any], columns: int, points: int) -> bool:
    """Return whether cluster numbers form rows of that many columns for that many points."""
    if numbers.size % columns:
        return False
    counts = numbers.reshape(-1, columns)[:, 0]
    # Each count is bounded first: a sum of huge ones would overflow.
    return bool(((counts >= 0) & (counts <= points)).all()) and int(counts.sum()) == points
