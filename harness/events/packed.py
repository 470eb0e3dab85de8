"""The compact file format of the packed sample, about two bytes a voxel.

A file holds events of one size:

- 8 bytes ``SSCNPACK``;
- the header's length and its CRC-32, 4 bytes each, little-endian, and the header, JSON:
  ``version``, ``size``, ``dim``, ``step``, ``voxels`` (one count an event), ``streams``
  (compressed lengths of the three streams that follow) and ``crc32`` (theirs);
- three LZMA2 streams, each over all events:

  - positions: within an event the voxels are sorted with the last axis fastest; the differences
    of their numbers, the first voxel's counted from -1, as variable-length integers of 7 bits a
    byte, least significant first, the high bit set on all bytes but the last;
  - energies: logarithmic codes, the low bytes of all voxels and then the high bytes. Code `c`
    stands for ``0.001 MeV * exp(step * c)``; the step keeps the error within 1 %. Code 0 stands
    for exactly zero; other energies under 1.01 keV have no code;
  - labels: a byte a voxel.
"""

import json
import lzma
import math
import os
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, checked_event, voxel_keys, voxels_of_keys
from harness.events.event_set import EventSet, file_sha256

MAGIC = b"SSCNPACK"
_VERSION = 1
_UNIT_MEV = 0.001
_STEP = 0.0196
_CODES = 1024
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
    part = path.with_name(path.name + ".part")
    part.write_bytes(MAGIC + lead + header + b"".join(streams))
    os.replace(part, path)


class PackedSet(EventSet):
    """Events of a packed file; the streams are unpacked when the first event is read.

    Parameters
    ----------
    path : Path
    name : str, optional
        What to call the set; the path by default.

    Raises
    ------
    BadInput
        If the file is truncated or not of this format.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self.name = name or str(path)
        with path.open("rb") as file:
            magic = file.read(8)
            length, checksum = (int.from_bytes(file.read(4), "little") for _ in range(2))
            text = file.read(length)
        if magic != MAGIC:
            raise BadInput(f"{path} is not a packed event file")
        if zlib.crc32(text) != checksum:
            raise BadInput(f"{path}: the header is damaged; fetch or make the file again")
        self._header = json.loads(text)
        if self._header["version"] != _VERSION:
            raise BadInput(f"{path} has version {self._header['version']}; this program reads 1")
        self._start = 16 + length
        self.sizes = (self._header["size"],)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return file_sha256(self._path)

    def __len__(self) -> int:
        return len(self._header["voxels"])

    def read(self, start: int, stop: int) -> list[Event]:
        """Unpack consecutive events."""
        keys, energies, labels = self._columns
        edges = self._edges[start : stop + 1].tolist()
        size, dim = self.sizes[0], self._header["dim"]
        events = []
        for i, a, b in zip(range(start, stop), edges, edges[1:], strict=False):
            voxels = voxels_of_keys(keys[a:b], size, dim)
            name = f"{self.name}, event {i}"
            events.append(checked_event(voxels, energies[a:b], labels[a:b], size, name))
        return events

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self._header["voxels"]])

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]]:
        """Voxel numbers, energies and labels of all events."""
        total = int(self._edges[-1])
        damaged = BadInput(f"{self._path} is truncated or damaged; fetch or make it again")
        data = self._path.read_bytes()[self._start :]
        if len(data) != sum(self._header["streams"]):
            raise damaged
        streams = []
        for length, checksum in zip(self._header["streams"], self._header["crc32"], strict=True):
            if zlib.crc32(data[:length]) != checksum:
                raise damaged
            streams.append(lzma.decompress(data[:length], lzma.FORMAT_RAW, filters=_FILTERS))
            data = data[length:]
        differences = _read_varints(streams[0])
        running = np.cumsum(differences)
        # Every event counts from -1 anew.
        before = np.append(0, running)[self._edges[:-1]]
        keys = running - np.repeat(before, np.diff(self._edges)) - 1
        codes = np.frombuffer(streams[1], np.uint8).astype(np.int64)
        energies = _energy_table(self._header["step"])[codes[:total] | codes[total:] << 8]
        return keys, energies, np.frombuffer(streams[2], np.uint8)


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
    groups = np.stack([values >> shift & 127 for shift in range(0, 35, 7)], axis=1)
    more = np.stack([values >> shift > 0 for shift in range(7, 42, 7)], axis=1)
    used = np.concatenate([np.ones((len(values), 1), bool), more[:, :-1]], axis=1)
    return (groups | more << 7).astype(np.uint8)[used].tobytes()


def _read_varints(data: bytes) -> NDArray[np.int64]:
    groups = np.frombuffer(data, np.uint8).astype(np.int64)
    if not len(groups):
        return groups
    last = groups < 128
    firsts = np.flatnonzero(np.append(True, last[:-1]))
    place = np.arange(len(groups)) - np.repeat(firsts, np.diff(np.append(firsts, len(groups))))
    return np.add.reduceat((groups & 127) << (7 * np.minimum(place, 8)), firsts)
