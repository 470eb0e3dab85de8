"""Reader of larcv2 ROOT files, the format of the public data set, through uproot."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event
from harness.events.event_set import FileSet, explained
from harness.events.larcv_products import (
    Product,
    checked_counts,
    choose_products,
    join_products,
)

# Entries at the beginning that are searched for a valid image.
_PROBED = 64
_COUNTS = ("_meta._xnum", "_meta._ynum", "_meta._znum")
_VOXELS = ("_voxel_v._id", "_voxel_v._value")


class Larcv2Set(FileSet):
    """Events of a larcv2 ROOT file.

    Each product ``X`` is a tree ``sparse3d_X_tree``; a voxel's id is
    ``(z * ny + y) * nx + x``.

    Parameters
    ----------
    path : Path

    Raises
    ------
    BadInput
        If trees or branches are missing, the trees differ in length, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        import uproot

        super().__init__(path)
        with explained(path, "the list of trees"):
            self._file = uproot.open(path)
            trees = {
                key[len("sparse3d_") : -len("_tree")]
                for key in self._file.keys(cycle=False)
                if key.startswith("sparse3d_") and key.endswith("_tree")
            }
        energy, self._label_product = choose_products(sorted(trees), str(path))
        self._energies = self._branches(energy, (*_COUNTS, *_VOXELS))
        self._labels = self._branches(self._label_product, _VOXELS, optional=_COUNTS)
        self._length = int(self._energies[_VOXELS[0]].num_entries)
        label_length = int(self._labels[_VOXELS[0]].num_entries)
        if self._length != label_length:
            raise BadInput(
                f"{path}: {self._length} entries of sparse3d_{energy} do not match {label_length} "
                f"of sparse3d_{self._label_product}; write the file anew"
            )
        if not self._length:
            raise BadInput(f"{path} has no entry; choose another file")
        counts = self._counts(self._energies, 0, min(self._length, _PROBED))
        if counts is None or not counts.any():
            raise BadInput(f"{path}: the first entries have no valid image size")
        self.sizes = (int(counts.max()),)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive entries."""
        if start == stop:
            return []
        energies, labels = (
            self._products(branches, start, stop) for branches in (self._energies, self._labels)
        )
        return [
            join_products(
                energy,
                label,
                self._label_product,
                first_axis_fastest=True,
                size=self.size,
                name=f"{self._path}, entry {i}",
            )
            for i, energy, label in zip(range(start, stop), energies, labels, strict=True)
        ]

    def _products(self, branches: dict[str, Any], start: int, stop: int) -> list[Product]:
        """The voxels of one product, entry by entry."""
        ids, values = (self._read(branches[suffix], start, stop) for suffix in _VOXELS)
        found = self._counts(branches, start, stop)
        counts: list[Any] = [None] * (stop - start)
        if found is not None:
            counts = [tuple(row) for row in found.tolist()]
        with explained(self._path, f"the voxels of entries {start} to {stop - 1}"):
            return [
                Product(np.asarray(i), np.asarray(v), c)
                for i, v, c in zip(ids, values, counts, strict=True)
            ]

    def _branches(
        self, product: str, suffixes: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        # By suffix: how deep the branches lie depends on how the file was split.
        tree = f"sparse3d_{product}_tree"
        with explained(self._path, f"the tree {tree}"):
            branches = list(self._file[tree].itervalues(recursive=True))
        found = {
            suffix: branch
            for suffix in (*suffixes, *optional)
            for branch in branches
            if branch.name == suffix or branch.name.endswith(f".{suffix}")
        }
        missing = [suffix for suffix in suffixes if suffix not in found]
        if missing:
            raise BadInput(
                f"{self._path}: the tree {tree} has no branch {missing[0]}; it was not written by "
                "larcv2, or without splitting"
            )
        return found

    def _read(self, branch: Any, start: int, stop: int) -> NDArray[Any]:
        with explained(self._path, f"branch {branch.name} of entries {start} to {stop - 1}"):
            values = np.asarray(branch.array(entry_start=start, entry_stop=stop, library="np"))
        if values.shape != (stop - start,):
            raise BadInput(f"{self._path}: entries {start} to {stop - 1} are incomplete")
        return values

    def _counts(self, branches: dict[str, Any], start: int, stop: int) -> NDArray[np.int64] | None:
        """Voxels along x, y and z of each entry; None without a description of the image."""
        if any(suffix not in branches for suffix in _COUNTS):
            return None
        name = f"{self._path}, entries {start} to {stop - 1}"
        return np.column_stack(
            [checked_counts(self._read(branches[suffix], start, stop), name) for suffix in _COUNTS]
        )
