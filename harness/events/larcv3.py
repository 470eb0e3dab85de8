"""Reader of larcv3 HDF5 files."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event
from harness.events.event_set import FileSet, explained
from harness.events.hdf5 import MOST_ROWS, checked_dataset, checked_group
from harness.events.larcv_products import (
    Product,
    checked_counts,
    choose_products,
    join_products,
)

# Image descriptions at the beginning that are searched for a valid one.
_PROBED = 64


def is_larcv3(file: h5py.File) -> bool:
    """Return whether an HDF5 file has larcv3's layout."""
    return "Data" in file and "Events" in file


class Larcv3Set(FileSet):
    """Events of a larcv3 HDF5 file.

    Each product ``X`` is a group ``Data/sparse3d_X_group``: ``extents`` gives an event's rows of
    ``voxel_extents`` and ``image_meta``, which give its rows of ``voxels``. A voxel's id is
    ``(x * ny + y) * nz + z``, the opposite of larcv2.

    Parameters
    ----------
    path : Path

    Raises
    ------
    BadInput
        If groups or data sets are missing, the products differ in length, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with explained(path, "the list of products"):
            self._file = h5py.File(path, "r")
            data = checked_group(self._file, "Data", str(path))
            groups = [
                key[len("sparse3d_") : -len("_group")]
                for key in data
                if key.startswith("sparse3d_") and key.endswith("_group")
            ]
            energy, self._label_product = choose_products(groups, str(path))
            self._energies = _ProductReader(data, path, energy)
            self._labels = _ProductReader(data, path, self._label_product)
        if len(self._energies.extents) != len(self._labels.extents):
            raise BadInput(
                f"{path}: {len(self._energies.extents)} events of sparse3d_{energy} do not match "
                f"{len(self._labels.extents)} of sparse3d_{self._label_product}; "
                "write the file anew"
            )
        if not len(self._energies.extents):
            raise BadInput(f"{path} has no event; choose another file")
        counts = self._energies.counts(0, min(_PROBED, len(self._energies.meta)))
        if not counts.any():
            raise BadInput(f"{path}: the first {len(counts)} images have no valid size")
        self.sizes = (int(counts.max()),)

    def __len__(self) -> int:
        return len(self._energies.extents)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events."""
        return [
            join_products(
                self._energies.voxels_of(i),
                self._labels.voxels_of(i),
                self._label_product,
                first_axis_fastest=False,
                size=self.size,
                name=f"{self._path}, event {i}",
            )
            for i in range(start, stop)
        ]


class _ProductReader:
    """The data sets of one sparse tensor product."""

    def __init__(self, data: h5py.Group, path: Path, name: str) -> None:
        self._path = path
        group = checked_group(data, f"sparse3d_{name}_group", str(path))
        wanted: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
            "extents": {"first": ("ui", ()), "N": ("ui", ())},
            "voxel_extents": {"first": ("ui", ()), "N": ("ui", ())},
            "voxels": {"id": ("ui", ()), "value": ("uif", ())},
            "image_meta": {"number_of_voxels": ("ui", (3,))},
        }
        missing = [key for key in wanted if key not in group]
        if missing:
            raise BadInput(f"{path}: sparse3d_{name}_group has no data set {missing[0]}")
        self.extents, self._voxel_extents, self._voxels, self.meta = (
            checked_dataset(group, key, str(path), fields=fields) for key, fields in wanted.items()
        )

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Voxels along x, y and z of images ``start`` to ``stop - 1``."""
        with explained(self._path, "the image sizes"):
            found = self.meta[start:stop]["number_of_voxels"]
        return checked_counts(found, str(self._path))

    def voxels_of(self, event: int) -> Product:
        """Return the voxels of an event with the size of its image."""
        name = f"{self._path}, event {event}"
        with explained(self._path, f"event {event}"):
            row = self.extents[event]
            first, images = int(row["first"]), int(row["N"])
            if images == 0:
                none = self._voxels[:0]
                return Product(none["id"], none["value"], (0, 0, 0))
            if images != 1:
                raise BadInput(
                    f"{name} has {images} images where one is needed; choose a 3D product"
                )
            if not 0 <= first < min(len(self._voxel_extents), len(self.meta)):
                raise BadInput(f"{name}: the row of its image is missing; the file is damaged")
            extent = self._voxel_extents[first]
        (counts,) = self.counts(first, first + 1).tolist()
        begin, number = int(extent["first"]), int(extent["N"])
        if not 0 <= begin <= begin + number <= len(self._voxels):
            raise BadInput(
                f"{name}: its voxels {begin} to {begin + number - 1} are not all in the file, "
                f"which has {len(self._voxels)}; it is truncated"
            )
        if number > MOST_ROWS:
            raise BadInput(f"{name}: {number} voxels are more than an event has")
        with explained(self._path, f"the voxels of event {event}"):
            voxels = self._voxels[begin : begin + number]
        return Product(voxels["id"], voxels["value"], tuple(counts))
