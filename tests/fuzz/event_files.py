"""Formats of events."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BadInput
from harness.events import Event, open_events
from harness.events.child_reader import open_in_child
from harness.events.native import EventWriter
from harness.events.packed import write_packed
from tests.fuzz.format import SECONDS, Format
from tests.fuzz.mutations import Rng, mutate_hdf5, mutate_json, pick
from tests.harness.events import files
from tests.harness.events.conftest import make_event


class _Events(Format):
    """A format of events."""

    size = 32

    def events(self) -> list[Event]:
        """Events of one size, one of them empty."""
        counts = enumerate((40, 0, 25))
        return [make_event(count, size=self.size, seed=seed) for seed, count in counts]

    def read(self, path: Path) -> str:
        """Read the events and their statistics."""
        from harness.events.info import statistics_table
        from harness.events.statistics import summarise

        digest = hashlib.sha256()
        with open_events(path) as events:
            found = list(events[:50])
            for event in found:
                digest.update(np.int64(event.size).tobytes() + event.voxels.tobytes())
                digest.update(event.energies.tobytes() + event.labels.tobytes())
        statistics_table(summarise(found), "fuzz")
        return digest.hexdigest()

    def contains(self, path: Path) -> bool:
        """Read in a child process, as commands do."""
        try:
            with open_in_child(path, seconds=SECONDS) as events:
                for event in events[:50]:
                    del event
        except BadInput:
            return True
        return False


class Larcv2(_Events):
    """ROOT files: columns of other values, and changed bytes."""

    name = "larcv2"

    def write(self, path: Path) -> None:
        """Write a valid file."""
        files.write_larcv2(path, self.events(), label_sizes=self.size)

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change bytes, or write the file with other columns."""
        if rng.random() < 0.6:
            super().mutate(path, rng)
            return
        import awkward

        events = self.events()
        product = pick(rng, ("data", "fivetypes"))
        suffix = pick(rng, ("_voxel_v._id", "_voxel_v._value", "_meta._xnum", "_meta._znum"))
        if suffix.startswith("_meta"):
            column: Any = np.full(len(events), self.size, np.uint64)
            column[int(rng.integers(len(column)))] = pick(rng, (0, 1, 33, 2**32, 2**63))
        else:
            rows = [rng.integers(0, 50, int(rng.integers(50))) for _ in events]
            kind = np.uint64 if suffix.endswith("_id") else np.float32
            column = awkward.Array([row.astype(kind) for row in rows])
        files.write_larcv2(path, events, self.size, **{f"{product}_{suffix}": column})


class Hdf5(_Events):
    """Formats in HDF5: changed structure, and changed bytes."""

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change the structure or bytes."""
        if rng.random() < 0.6:
            mutate_hdf5(path, rng)
        else:
            super().mutate(path, rng)


class Larcv3(Hdf5):
    """larcv3 files."""

    name = "larcv3"

    def write(self, path: Path) -> None:
        """Write a valid file."""
        files.write_larcv3(path, self.events())


class PilarnetM(Hdf5):
    """PILArNet-M files."""

    name = "pilarnet-m"
    size = 768

    def write(self, path: Path) -> None:
        """Write a valid file."""
        files.write_pilarnet_m(path, self.events(), revision=2)


class Native(Hdf5):
    """Files of the project's own format."""

    name = "native"
    checked = True

    def write(self, path: Path) -> None:
        """Write a valid file."""
        with EventWriter(path, self.size, 3, "fuzz") as writer:
            for event in self.events():
                writer.append(event)


class Packed(_Events):
    """Files of the sample's format: changed headers with right checksums, and changed bytes."""

    name = "packed"

    def write(self, path: Path) -> None:
        """Write a valid file."""
        write_packed(path, self.events())

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change the header or bytes."""
        if rng.random() < 0.4:
            super().mutate(path, rng)
            return
        content = path.read_bytes()
        end = 16 + int.from_bytes(content[8:12], "little")
        text = json.dumps(mutate_json(json.loads(content[16:end]), rng)).encode()
        lead = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
        path.write_bytes(content[:8] + lead + text + content[end:])


class PackedBytes(Packed):
    """Files of the sample's format with changed bytes, which checksums notice."""

    name = "packed-bytes"
    checked = True

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change bytes."""
        Format.mutate(self, path, rng)
