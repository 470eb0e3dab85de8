"""The compact format of the sample in the package, 1.3 bytes per voxel.

It exists for the sample alone. The sample's 2.5 million voxels take 3.4 MB here, 14.8 MB in the
project's HDF5 format (``native``), and 4.0 MB in HDF5 with the same codes and gzip at its highest
level; reading all of it takes 2.2 s against 1.1 s. The identity of the files (``sample.SHA256``) is
part of every stored record, so that the format does not change. For other events use ``native``.

A file holds events of one size:

- 8 bytes ``SSCNPACK``;
- the header's length and its CRC-32, 4 bytes each, little-endian, and the header, JSON:
  ``version``, ``size``, ``dim``, ``step``, ``voxels`` (one count per event), ``streams``
  (compressed lengths of the three streams that follow) and ``crc32`` (theirs);
- three LZMA2 streams, each over all events:

  - positions: within an event the voxels are sorted with the last axis fastest; the differences
    of their numbers, that of the first voxel from -1, as variable-length integers of 7 bits per
    byte, least significant first, with the high bit set in all bytes but the last;
  - energies: logarithmic codes, the low bytes of all voxels and then the high bytes. Code ``c``
    stands for ``0.001 MeV * exp(step * c)``; the step keeps the error within 1 %. Code 0 stands
    for exactly zero; other energies under 1.01 keV have no code;
  - labels: one byte per voxel.
"""

import json
import lzma
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import (
    LARGEST_SIZE,
    Event,
    checked_event,
    voxel_keys,
    voxels_of_keys,
)
from harness.events.event_set import EventSet, explained, file_sha256
from harness.files import write_bytes

MAGIC = b"SSCNPACK"
_VERSION = 1
_UNIT_MEV = 0.001
_STEP = 0.0196
_CODES = 1024
# 7 bytes hold 49 bits; the largest image has 2^48 voxels.
_LONGEST_VARINT = 7
_LONGEST_HEADER = 1 << 24
_MOST_VOXELS = 1 << 27
_LEAST_MEV, _MOST_MEV = 1.01e-3, 5e5
# One fixed LZMA2 chain: the bytes must not follow the defaults of a future liblzma.
_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 24,
        "lc": 3,
        "lp": 0,
        "pb": 0,
        "mode": lzma.MODE_NORMAL,
        "nice_len": 273,
        "mf": lzma.MF_BT4,
        "depth": 1000,
    }
]


def write_packed(path: Path, events: Iterable[Event]) -> None:
    """Write events of one size, energies rounded within 1 %.

    Raises
    ------
    BadInput
        If there is no event, the events differ in size, or an energy is neither zero nor within
        the format's range of 1.01 keV to 500 GeV.
    """
    events = list(events)
    if len({(event.size, event.dim) for event in events}) != 1:
        raise BadInput(
            f"{path}: a packed file holds events of one size; none or several were given"
        )
    positions, codes, labels = [], [], []
    for event in events:
        keys = voxel_keys(event.voxels, event.size)
        order = np.argsort(keys)
        positions.append(_varints(np.diff(keys[order], prepend=-1)))
        codes.append(_energy_codes(event)[order])
        labels.append(event.labels[order])
    code = np.concatenate(codes)
    streams = [
        lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)
        for data in (
            b"".join(positions),
            (code & 255).astype(np.uint8).tobytes() + (code >> 8).astype(np.uint8).tobytes(),
            np.concatenate(labels).tobytes(),
        )
    ]
    header = json.dumps(
        {
            "version": _VERSION,
            "size": events[0].size,
            "dim": events[0].dim,
            "step": _STEP,
            "voxels": [len(event) for event in events],
            "streams": [len(stream) for stream in streams],
            "crc32": [zlib.crc32(stream) for stream in streams],
        },
        separators=(",", ":"),
    ).encode()
    lead = len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little")
    write_bytes(path, MAGIC + lead + header + b"".join(streams))


@dataclass(frozen=True)
class _Header:
    """The checked header of a file; its fields are described in the module's docstring."""

    size: int
    dim: int
    step: float
    voxels: tuple[int, ...]
    streams: tuple[int, ...]
    crc32: tuple[int, ...]


def _parse_header(text: bytes, path: Path) -> _Header:
    """Check every field of a header.

    Raises
    ------
    BadInput
        If one is missing, or of another type or range.
    """

    def is_count(value: object, least: int, most: int) -> bool:
        return type(value) is int and least <= value <= most

    def wholes(value: object, most: int) -> bool:
        return isinstance(value, list) and all(is_count(each, 0, most) for each in value)

    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: the header is damaged; fetch or make the file again")
    if not is_count(fields.get("version"), _VERSION, _VERSION):
        raise BadInput(f"{path} has version {fields.get('version')!r}; this program reads 1")
    step = fields.get("step")
    checks = {
        "size": is_count(fields.get("size"), 1, LARGEST_SIZE),
        "dim": is_count(fields.get("dim"), 2, 3),
        "step": isinstance(step, float) and 0 < step < 0.1,
        "voxels": wholes(fields.get("voxels"), _MOST_VOXELS)
        and len(fields["voxels"]) > 0
        and sum(fields["voxels"]) <= _MOST_VOXELS,
        "streams": wholes(fields.get("streams"), 1 << 32) and len(fields["streams"]) == 3,
        "crc32": wholes(fields.get("crc32"), 0xFFFFFFFF) and len(fields["crc32"]) == 3,
    }
    for name, valid in checks.items():
        if not valid:
            raise BadInput(f"{path}: {name} of the header is wrong; fetch or make the file again")
    return _Header(
        fields["size"],
        fields["dim"],
        fields["step"],
        *(tuple(fields[name]) for name in ("voxels", "streams", "crc32")),
    )


class PackedSet(EventSet):
    """Events of a packed file; the streams are decompressed when the first event is read.

    Parameters
    ----------
    path : Path
    name : str, optional
        Name of the set; the path by default.

    Raises
    ------
    BadInput
        If the file is truncated or not of this format.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self.name = name or str(path)
        with explained(path, "the header"), path.open("rb") as file:
            magic = file.read(8)
            length, checksum = (int.from_bytes(file.read(4), "little") for _ in range(2))
            text = file.read(min(length, _LONGEST_HEADER))
        if magic != MAGIC:
            raise BadInput(f"{path} is not a packed event file")
        if len(text) != length or zlib.crc32(text) != checksum:
            raise BadInput(f"{path}: the header is damaged; fetch or make the file again")
        self._header = _parse_header(text, path)
        self._start = 16 + length
        self.sizes = (self._header.size,)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return file_sha256(self._path)

    def __len__(self) -> int:
        return len(self._header.voxels)

    def read(self, start: int, stop: int) -> list[Event]:
        """Decompress consecutive events."""
        keys, energies, labels = self._columns
        edges = self._edges[start : stop + 1].tolist()
        size, dim = self._header.size, self._header.dim
        events = []
        for i, a, b in zip(range(start, stop), edges, edges[1:], strict=False):
            voxels = voxels_of_keys(keys[a:b], size, dim)
            name = f"{self.name}, event {i}"
            events.append(checked_event(voxels, energies[a:b], labels[a:b], size, name))
        return events

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self._header.voxels], dtype=np.int64)

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
        """Voxel numbers, energies and labels of all events."""
        total = int(self._edges[-1])
        with explained(self._path, "the streams"):
            positions, codes, labels = self._streams(total)
            differences = _read_varints(positions)
            if len(differences) != total:
                raise self._damaged()
            most = self._header.size**self._header.dim
            if total and not (differences.min() >= 1 and differences.max() <= most):
                raise self._damaged()
            running = np.cumsum(differences)
            # The count starts at -1 in every event.
            before = np.append(0, running)[self._edges[:-1]]
            keys = running - np.repeat(before, np.diff(self._edges)) - 1
            low, high = codes[:total].astype(np.int64), codes[total:].astype(np.int64)
            code = low | high << 8
            if total and (keys.max() >= most or code.max() >= _CODES):
                raise self._damaged()
        return keys, _energy_table(self._header.step)[code], labels

    def _streams(self, total: int) -> tuple[bytes, NDArray[np.uint8], NDArray[np.uint8]]:
        """Decompress the three streams, to the lengths that the header implies."""
        data = self._path.read_bytes()[self._start :]
        if len(data) != sum(self._header.streams):
            raise self._damaged()
        found = []
        for length, checksum, most in zip(
            self._header.streams,
            self._header.crc32,
            (_LONGEST_VARINT * total, 2 * total, total),
            strict=True,
        ):
            if zlib.crc32(data[:length]) != checksum:
                raise self._damaged()
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
            found.append(unpacked.decompress(data[:length], max_length=most + 1))
            data = data[length:]
        if len(found[1]) != 2 * total or len(found[2]) != total:
            raise self._damaged()
        return found[0], np.frombuffer(found[1], np.uint8), np.frombuffer(found[2], np.uint8)

    def _damaged(self) -> BadInput:
        return BadInput(f"{self._path} is truncated or damaged; fetch or make it again")


def _energy_table(step: float) -> NDArray[np.float32]:
    # math.exp, not numpy's: the same on every processor.
    codes = [0.0] + [_UNIT_MEV * math.exp(step * code) for code in range(1, _CODES)]
    return np.array(codes, np.float32)


def _energy_codes(event: Event) -> NDArray[np.int64]:
    deposited = event.energies[event.energies != 0]
    if len(deposited) and (deposited.min() < _LEAST_MEV or deposited.max() > _MOST_MEV):
        raise BadInput(
            f"{event.name}: an energy lies outside the packed format's 1.01 keV to 500 GeV; "
            "convert to the project's own HDF5 format instead"
        )
    limits = [_UNIT_MEV * math.exp(_STEP * (code + 0.5)) for code in range(1, _CODES - 1)]
    codes = 1 + np.searchsorted(limits, event.energies.astype(np.float64))
    return np.where(event.energies > 0, codes, 0)


def _varints(values: NDArray[np.int64]) -> bytes:
    """Encode positive integers in 7-bit groups, least significant first."""
    bits = 7 * _LONGEST_VARINT
    groups = np.stack([values >> shift & 127 for shift in range(0, bits, 7)], axis=1)
    more = np.stack([values >> shift > 0 for shift in range(7, bits + 7, 7)], axis=1)
    used = np.concatenate([np.ones((len(values), 1), bool), more[:, :-1]], axis=1)
    encoded: bytes = (groups | more << 7).astype(np.uint8)[used].tobytes()
    return encoded


def _read_varints(data: bytes) -> NDArray[np.int64]:
    groups = np.frombuffer(data, np.uint8).astype(np.int64)
    if not len(groups):
        return groups
    last = groups < 128
    firsts = np.flatnonzero(np.append(True, last[:-1]))
    if not last[-1]:
        raise ValueError("the last number of the positions is incomplete")
    place = np.arange(len(groups)) - np.repeat(firsts, np.diff(np.append(firsts, len(groups))))
    if place.max() >= _LONGEST_VARINT:
        raise ValueError("a number of the positions is too long")
    found: NDArray[np.int64] = np.add.reduceat((groups & 127) << (7 * place), firsts)
    return found
