"""Reads PILArNet-M HDF5 files, both revisions."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, Label, checked_event
from harness.events.event_set import FileSet, explained
from harness.events.larcv_products import SHAPE_ORDER, translate_labels

SIZE = 768
"""Voxels a side of every image of the data set."""

_POINT_COLUMNS = 8
_PROTON = 4
# Events at the beginning that tell the revision where nothing else does.
_PROBED = 16
_TRACKS = {2: Label.MIP, 3: Label.MIP, _PROTON: Label.HIP}
"""What a track is by its particle: 2 muon, 3 pion, 4 proton."""


def is_pilarnet_m(file: h5py.File) -> bool:
    """Tell whether an HDF5 file has PILArNet-M's layout."""
    return "point" in file and "cluster" in file


class PilarnetMSet(FileSet):
    """Events of a PILArNet-M file.

    ``point[i]`` is flat, eight numbers a point: x, y, z (voxel indices), energy in MeV, and four
    that are not needed here. ``cluster[i]`` is flat, five numbers a cluster (six in the second
    revision): number of points, fragment, group, interaction, semantic class and, in the second
    revision, the particle. Points are ordered by cluster. With the particle, tracks become HIP or
    MIP; without it they are `Label.TRACK`.

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
            self._points, self._clusters = self._file["point"], self._file["cluster"]
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

    def _event(self, name: str, flat: NDArray, cluster_numbers: NDArray) -> Event:
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
        """Tell the revision, for the whole file: a single event may fit both."""
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


def _fits(numbers: NDArray, columns: int, points: int) -> bool:
    """Tell whether cluster numbers make rows of that many columns for that many points."""
    if numbers.size % columns:
        return False
    table = numbers.reshape(-1, columns)
    return bool((table[:, 0] >= 0).all()) and int(table[:, 0].sum()) == points
