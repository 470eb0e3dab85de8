"""The project's own event file, HDF5: what simulation and conversion write, quick to read.

Attributes of the file: ``format`` (``sscn-bench events``), ``version`` (1), ``size`` (voxels a
side), ``dim`` (2 or 3), ``source`` (where the events come from, text).

Data sets, with E events and N voxels in all:

- ``offsets``: uint64, (E + 1,); event `i` has the rows ``offsets[i]`` to ``offsets[i + 1] - 1``;
- ``voxels``: uint16, (N, dim), sorted within an event with the last axis fastest;
- ``energies``: float32, (N,), MeV;
- ``labels``: uint8, (N,), values of `harness.events.event.Label`.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, checked_event
from harness.events.event_set import FileSet, explained

FORMAT = "sscn-bench events"
_VERSION = 1
_LARGEST_SIZE = 1 << 16
# Small enough that one event of a random-access read unpacks little more than itself.
_CHUNK_ROWS = 1 << 13
_BUFFERED_VOXELS = 1 << 18


def is_native(file: h5py.File) -> bool:
    """Tell whether an HDF5 file is of this format."""
    return file.attrs.get("format") == FORMAT


class EventWriter:
    """Writes events one after the other, in bounded memory.

    The file appears under its name when the writer is closed without an error; until then it is
    ``NAME.part``. Equal events give equal bytes.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    size, dim : int
        Of all events.
    source : str
        Where the events come from.

    Raises
    ------
    BadInput
        If the folder does not exist or the size is beyond the format.
    """

    def __init__(self, path: Path, size: int, dim: int, source: str) -> None:
        if size > _LARGEST_SIZE:
            raise BadInput(f"{path}: {size} voxels a side are more than the format's 65536")
        if not path.parent.is_dir():
            raise BadInput(f"{path}: the folder {path.parent} does not exist; make it first")
        self._path, self._size, self._dim = path, size, dim
        self._part = path.with_name(path.name + ".part")
        self._file = h5py.File(self._part, "w")
        self._file.attrs.update(
            {"format": FORMAT, "version": _VERSION, "size": size, "dim": dim, "source": source}
        )
        self._columns = {
            "voxels": self._column("voxels", np.uint16, (dim,)),
            "energies": self._column("energies", np.float32),
            "labels": self._column("labels", np.uint8),
        }
        self._offsets = self._column("offsets", np.uint64)
        self._buffer: list[Event] = []
        self._buffered = self._total = 0
        self._ends = [0]

    def append(self, event: Event) -> None:
        """Add an event.

        Raises
        ------
        BadInput
            If its size or dimension differs from the file's.
        """
        if (event.size, event.dim) != (self._size, self._dim):
            raise BadInput(
                f"{event.name}: {event.size} px in {event.dim}D cannot join a file of "
                f"{self._size} px in {self._dim}D; choose one size"
            )
        self._buffer.append(event)
        self._buffered += len(event)
        self._total += len(event)
        self._ends.append(self._total)
        if self._buffered >= _BUFFERED_VOXELS:
            self._flush()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
            self._file.close()
            os.replace(self._part, self._path)
        else:
            self._file.close()
            self._part.unlink()

    def _column(self, name: str, dtype: Any, shape: tuple[int, ...] = ()) -> h5py.Dataset:
        return self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(_CHUNK_ROWS, *shape),
            dtype=dtype,
            shuffle=True,
            compression="gzip",
            compression_opts=1,
        )

    def _flush(self) -> None:
        for name, column in self._columns.items():
            if self._buffer:
                _extend(column, np.concatenate([getattr(event, name) for event in self._buffer]))
        _extend(self._offsets, np.array(self._ends, np.uint64))
        self._buffer, self._buffered, self._ends = [], 0, []


def _extend(column: h5py.Dataset, rows: NDArray) -> None:
    column.resize(len(column) + len(rows), axis=0)
    column[len(column) - len(rows) :] = rows


class NativeSet(FileSet):
    """Events of a file in this format.

    Parameters
    ----------
    path : Path

    Raises
    ------
    BadInput
        If data sets are missing or disagree in length, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with explained(path, "the head"):
            self._file = h5py.File(path, "r")
            version = int(self._file.attrs["version"])
            if version != _VERSION:
                raise BadInput(f"{path} has version {version}; this program reads {_VERSION}")
            self.sizes = (int(self._file.attrs["size"]),)
            self._offsets = self._file["offsets"][:].astype(np.int64)
            self._columns = [self._file[name] for name in ("voxels", "energies", "labels")]
            lengths = {len(column) for column in self._columns}
        if lengths != {int(self._offsets[-1])} or (np.diff(self._offsets) < 0).any():
            raise BadInput(f"{path}: the offsets do not match the voxels; make the file again")

    @property
    def source(self) -> str:
        """Where the events come from, as written."""
        return str(self._file.attrs["source"])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events."""
        begin, end = self._offsets[start], self._offsets[stop]
        with explained(self._path, f"events {start} to {stop - 1}"):
            voxels, energies, labels = (column[begin:end] for column in self._columns)
        edges = (self._offsets[start : stop + 1] - begin).tolist()
        return [
            checked_event(
                voxels[a:b].astype(np.int32),
                energies[a:b],
                labels[a:b],
                self.size,
                f"{self._path}, event {i}",
            )
            for i, a, b in zip(range(start, stop), edges, edges[1:], strict=False)
        ]
