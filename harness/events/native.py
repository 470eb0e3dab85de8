"""The project's own event file, HDF5: what simulation and conversion write.

Attributes of the file: ``format`` (``sscn-bench events``), ``version`` (2), ``size`` (voxels per
side), ``dim`` (2 or 3), ``source`` (origin of the events, text), ``checksum`` (SHA-256 of all other
attributes, the offsets and the checksums of the events, see ``head_checksum``).

Data sets, with E events and N voxels in all:

- ``offsets``: uint64, (E + 1,); event ``i`` has the rows ``offsets[i]`` to ``offsets[i + 1] - 1``;
- ``voxels``: uint16, (N, dim), sorted within an event with the last axis fastest;
- ``energies``: float32, (N,), MeV;
- ``labels``: uint8, (N,), values of ``harness.events.event.Label``;
- ``crc32``: uint32, (E,), checksum of the voxels, energies and labels of each event.

Files of version 1 have no checksums; they are read as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import LARGEST_SIZE, Event, checked_event
from harness.events.event_set import FileSet, explained
from harness.events.hdf5 import MOST_ROWS, checked_dataset, whole_number
from harness.files import Replacement, refuse

FORMAT = "sscn-bench events"
_VERSION = 2
# Small enough that reading one event decompresses little more than that event.
_CHUNK_ROWS = 1 << 13
_BUFFERED_VOXELS = 1 << 18


def is_native(file: h5py.File) -> bool:
    """Return whether an HDF5 file is of this format."""
    name = file.attrs.get("format")
    return isinstance(name, str) and name == FORMAT


def event_checksum(
    voxels: NDArray[np.integer[Any]],
    energies: NDArray[np.float32],
    labels: NDArray[np.integer[Any]],
) -> int:
    """Return the CRC-32 of an event's bytes as they are stored, little-endian."""
    crc = zlib.crc32(np.ascontiguousarray(voxels, "<u2").tobytes())
    crc = zlib.crc32(np.ascontiguousarray(energies, "<f4").tobytes(), crc)
    return zlib.crc32(np.ascontiguousarray(labels, "u1").tobytes(), crc)


def head_checksum(
    size: int,
    dim: int,
    source: str,
    offsets: NDArray[np.integer[Any]],
    checksums: NDArray[np.integer[Any]],
) -> str:
    """Return the SHA-256 of everything but the events themselves, in hexadecimal."""
    head = json.dumps([FORMAT, _VERSION, size, dim, source]).encode()
    digest = hashlib.sha256(head)
    digest.update(np.ascontiguousarray(offsets, "<u8").tobytes())
    digest.update(np.ascontiguousarray(checksums, "<u4").tobytes())
    return digest.hexdigest()


class _TargetFile(io.FileIO):
    """A file for the HDF5 library, which cannot cope with a failing write: the error is kept.

    From the first error on, writing does nothing.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all bytes, or keep the error."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        while len(rest) and self.error is None:
            try:
                rest = rest[super().write(rest) or 0 :]
            except OSError as error:
                self.error = error
        return length

    def truncate(self, size: int | None = None) -> int:
        """Change the length, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


class EventWriter:
    """Writes events one after the other, in bounded memory.

    The file appears under its name when the writer is closed without an error. Equal events give
    equal bytes.

    Parameters
    ----------
    path : Path
        A regular file there is replaced.
    size, dim : int
        Of all events.
    source : str
        Origin of the events.

    Raises
    ------
    BadInput
        If the file cannot be written or the size is beyond the format.
    """

    def __init__(self, path: Path, size: int, dim: int, source: str) -> None:
        if size > LARGEST_SIZE:
            raise BadInput(
                f"{path}: {size} voxels per side are more than the format's {LARGEST_SIZE}"
            )
        self._path, self._size, self._dim, self._source = path, size, dim, source
        self._replacement = Replacement(path)
        self._target = _TargetFile(self._replacement.part, "r+")
        self._file = h5py.File(self._target, "w")
        self._file.attrs.update(
            {"format": FORMAT, "version": _VERSION, "size": size, "dim": dim, "source": source}
        )
        self._columns = {
            "voxels": self._column("voxels", np.uint16, (dim,)),
            "energies": self._column("energies", np.float32),
            "labels": self._column("labels", np.uint8),
        }
        self._buffer: list[Event] = []
        self._buffered = 0
        self._ends = [0]
        self._checksums: list[int] = []

    def append(self, event: Event) -> None:
        """Add an event.

        Raises
        ------
        BadInput
            If its size or dimension differs from the file's, or the disk is full.
        """
        if (event.size, event.dim) != (self._size, self._dim):
            raise BadInput(
                f"{event.name}: {event.size} px in {event.dim}D cannot join a file of "
                f"{self._size} px in {self._dim}D; choose one size"
            )
        self._buffer.append(event)
        self._buffered += len(event)
        self._ends.append(self._ends[-1] + len(event))
        self._checksums.append(event_checksum(event.voxels, event.energies, event.labels))
        if self._buffered >= _BUFFERED_VOXELS:
            self._flush()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._write_head()
            self._file.close()
            self._target.close()
            if kind is None:
                self._check()
                self._replacement.commit()
        finally:
            self._replacement.discard()

    def _write_head(self) -> None:
        offsets = np.array(self._ends, np.uint64)
        checksums = np.array(self._checksums, np.uint32)
        _extend(self._column("offsets", np.uint64), offsets)
        _extend(self._column("crc32", np.uint32), checksums)
        self._file.attrs["checksum"] = head_checksum(
            self._size, self._dim, self._source, offsets, checksums
        )

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
        self._buffer, self._buffered = [], 0
        self._check()

    def _check(self) -> None:
        if self._target.error is not None:
            refuse(self._path, self._target.error)


def _extend(column: h5py.Dataset, rows: NDArray[Any]) -> None:
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
            attributes = self._file.attrs
            version = whole_number(attributes["version"], f"{path}: the version", 1, _VERSION)
            size = whole_number(attributes["size"], f"{path}: the size", 1, LARGEST_SIZE)
            dim = whole_number(attributes["dim"], f"{path}: the number of axes", 2, 3)
            source = attributes["source"]
            if not isinstance(source, str):
                raise BadInput(f"{path}: the source is no text; make the file again")
            self.source = source
            """Origin of the events, as written."""
            self.sizes = (size,)
            name = str(path)
            offsets = checked_dataset(self._file, "offsets", name, kinds="u")
            self._columns = [
                checked_dataset(self._file, "voxels", name, kinds="u", columns=dim),
                checked_dataset(self._file, "energies", name, kinds="f"),
                checked_dataset(self._file, "labels", name, kinds="u"),
            ]
            # Compression reaches a factor of about 1000: a longer claim has no data behind it.
            if len(offsets) > 1000 * path.stat().st_size:
                raise BadInput(f"{path}: {len(offsets)} offsets do not fit into the file")
            self._offsets = _offsets(offsets[:], dim, size, path)
            lengths = {len(column) for column in self._columns}
            if lengths != {int(self._offsets[-1])}:
                raise BadInput(f"{path}: the offsets do not match the voxels; make the file again")
            self._checksums: NDArray[np.uint32] | None = None
            if version > 1:
                self._checksums = self._read_checksums(dim, source)

    def _read_checksums(self, dim: int, source: str) -> NDArray[np.uint32]:
        """Read the events' checksums, and verify that of the head."""
        stored = checked_dataset(self._file, "crc32", self.name, kinds="u")
        if len(stored) != len(self):
            raise BadInput(f"{self.name}: the checksums do not match the events; make it again")
        found: NDArray[np.uint32] = stored[:]
        if self._file.attrs["checksum"] != head_checksum(
            self.size, dim, source, self._offsets, found
        ):
            raise BadInput(f"{self.name}: the head is damaged; make the file again")
        return found

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events."""
        begin, end = self._offsets[start], self._offsets[stop]
        with explained(self._path, f"events {start} to {stop - 1}"):
            voxels, energies, labels = (column[begin:end] for column in self._columns)
        edges = (self._offsets[start : stop + 1] - begin).tolist()
        events = []
        for i, a, b in zip(range(start, stop), edges, edges[1:], strict=False):
            name = f"{self._path}, event {i}"
            if self._checksums is not None and self._checksums[i] != event_checksum(
                voxels[a:b], energies[a:b], labels[a:b]
            ):
                raise BadInput(f"{name} is damaged: its checksum is wrong; make the file again")
            events.append(
                checked_event(
                    voxels[a:b].astype(np.int32), energies[a:b], labels[a:b], self.size, name
                )
            )
        return events


def _offsets(
    stored: NDArray[np.unsignedinteger[Any]], dim: int, size: int, path: Path
) -> NDArray[np.int64]:
    """Check that the offsets start at 0 and ascend by a possible number of voxels."""
    damaged = BadInput(f"{path}: the offsets are damaged; make the file again")
    if not len(stored) or stored[0] != 0 or stored.max() > np.iinfo(np.int64).max:
        raise damaged
    offsets = stored.astype(np.int64)
    counts = np.diff(offsets)
    if len(counts) and (counts.min() < 0 or counts.max() > min(size**dim, MOST_ROWS)):
        raise damaged
    return offsets
