"""Reads larcv3 HDF5 files."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event
from harness.events.event_set import FileSet, explained
from harness.events.larcv_products import choose_products, join_products

# Image descriptions at the beginning among which a valid one is looked for.
_PROBED = 64


def is_larcv3(file: h5py.File) -> bool:
    """Tell whether an HDF5 file has larcv3's layout."""
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
            groups = [
                key[len("sparse3d_") : -len("_group")]
                for key in self._file["Data"]
                if key.startswith("sparse3d_") and key.endswith("_group")
            ]
        energy, self._label_product = choose_products(groups, str(path))
        self._energies = _Product(self._file, path, energy)
        self._labels = _Product(self._file, path, self._label_product)
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
        events = []
        for i in range(start, stop):
            name = f"{self._path}, event {i}"
            energies, counts = self._energies.voxels_of(i, name)
            labels, _ = self._labels.voxels_of(i, name)
            nx, ny, nz = counts
            if max(counts) != self.size and (len(energies) or any(counts)):
                raise BadInput(
                    f"{name}: the image has {max(counts)} voxels a side, the first of the file "
                    f"has {self.size}; write one size a file"
                )
            events.append(
                join_products(
                    (energies["id"], energies["value"]),
                    (labels["id"], labels["value"]),
                    self._label_product,
                    (nx, ny, nz),
                    first_axis_fastest=False,
                    size=self.size,
                    name=name,
                )
            )
        return events


class _Product:
    """The data sets of one sparse tensor product."""

    def __init__(self, file: h5py.File, path: Path, name: str) -> None:
        self._path = path
        group = file[f"Data/sparse3d_{name}_group"]
        wanted = ("extents", "voxel_extents", "voxels", "image_meta")
        missing = [key for key in wanted if key not in group]
        if missing:
            raise BadInput(f"{path}: sparse3d_{name}_group has no data set {missing[0]}")
        self.extents, self._voxel_extents, self._voxels, self.meta = (group[key] for key in wanted)

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Voxels along x, y and z of images ``start`` to ``stop - 1``."""
        with explained(self._path, "the image sizes"):
            return self.meta[start:stop]["number_of_voxels"].astype(np.int64)

    def voxels_of(self, event: int, name: str) -> tuple[NDArray, tuple[int, int, int]]:
        """Return the voxel rows (``id``, ``value``) of an event and the size of its image."""
        with explained(self._path, f"event {event}"):
            first, images = (int(number) for number in self.extents[event])
            if images == 0:
                return self._voxels[:0], (0, 0, 0)
            extents = self._voxel_extents[first : first + 1]
            counts = self.counts(first, first + 1)
        if images != 1:
            raise BadInput(f"{name} has {images} images where one is needed; choose a 3D product")
        if not len(extents) or not len(counts):
            raise BadInput(f"{name}: the row of its image is missing; the file is damaged")
        begin, number = int(extents[0]["first"]), int(extents[0]["N"])
        with explained(self._path, f"the voxels of event {event}"):
            voxels = self._voxels[begin : begin + number]
        if len(voxels) != number:
            raise BadInput(
                f"{name}: {len(voxels)} of {number} voxels are in the file; it is truncated"
            )
        nx, ny, nz = counts[0].tolist()
        return voxels, (nx, ny, nz)
