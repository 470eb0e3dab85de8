"""The formats that are read: a valid file of each, its mutations, and what reading gives."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BadInput
from harness.events import Event, open_events
from harness.events.native import EventWriter
from harness.events.packed import write_packed
from tests.fuzz.mutations import Rng, mutate_bytes, mutate_hdf5, mutate_json, pick
from tests.harness.events import files
from tests.harness.events.conftest import make_event


class Format(ABC):
    """One format.

    Attributes
    ----------
    name
        Its name on the command line.
    checked
        Whether checksums cover the content: reading gives the original or a refusal.
    refusals
        The exceptions that count as one sentence to the user.
    """

    name: str
    checked = False
    refusals: tuple[type[Exception], ...] = (BadInput,)

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write a valid file."""

    def mutate(self, path: Path, rng: Rng) -> None:
        """Mutate a file in place."""
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))

    @abstractmethod
    def read(self, path: Path) -> str:
        """Read all of a file, and return the identity of its content."""


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


class AsvDatabase(Format):
    """asv's database: a file of results beside a valid list of benchmarks."""

    name = "asv-database"
    track = "inference.Inference.track_time"

    def write(self, path: Path) -> None:
        """Write a valid file."""
        row = [[0.1], [["'sscn'"], ["192"], ["1"], ["'cold'"]], "1", 0, 1.0, [0.09], [0.11]]
        columns = ["result", "params", "version", "started_at", "duration"]
        content = {
            "commit_hash": "a" * 40,
            "date": 1767225600000,
            "params": {"cpu": "Example CPU", "gpu": ""},
            "result_columns": [*columns, "stats_q_25", "stats_q_75"],
            "results": {self.track: row},
        }
        path.write_text(json.dumps(content))

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change an element, or bytes."""
        if rng.random() < 0.2:
            super().mutate(path, rng)
        else:
            path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), rng)))

    def read(self, path: Path) -> str:
        """Read the file as one of a database, and find changes."""
        from harness.history.findings import change_rows, find_all_changes
        from harness.history.series import Commits, load

        database = path.parent / "results" / "asv"
        (database / "machine").mkdir(parents=True, exist_ok=True)
        names = ["engine", "size", "batch", "map"]
        about = {self.track: {"param_names": names, "unit": "seconds"}, "version": 2}
        (database / "benchmarks.json").write_text(json.dumps(about))
        (database / "machine" / "aaaaaaaa-env.json").write_bytes(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = find_all_changes(load(path.parent / "results", Commits({}, [])))
        return json.dumps(change_rows(found))


class OsfList(Format):
    """OSF's list of files, from a server on this machine."""

    name = "osf-list"

    def write(self, path: Path) -> None:
        """Write a valid answer; ADDRESS stands for the server."""
        file = {
            "attributes": {"kind": "file", "name": "dlprod_192px_00.root", "size": 5, "extra": {}},
            "links": {"download": "ADDRESS/download"},
        }
        folder = {
            "attributes": {"kind": "folder", "name": "192px"},
            "relationships": {"files": {"links": {"related": {"href": "ADDRESS/v2/folder"}}}},
        }
        content = {"data": [file, folder], "links": {"next": "ADDRESS/v2/next"}}
        path.write_text(json.dumps(content))

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change an element, or bytes."""
        if rng.random() < 0.2:
            super().mutate(path, rng)
        else:
            path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), rng)))

    def read(self, path: Path) -> str:
        """List the files: the first answer is the file, all others are empty."""
        from harness.events.osf import list_files
        from tests.harness.events.test_osf import Osf, serving

        osf = Osf()
        with serving(osf) as osf.address:
            first = path.read_bytes().replace(b"ADDRESS", osf.address.encode())
            answers = iter([first])
            osf.answer = lambda: next(answers, b'{"data": [], "links": {}}')
            return str(len(list_files(f"{osf.address}/v2")))


class Records(Format):
    """Files of records, as the results of the project hold them."""

    name = "records"

    def write(self, path: Path) -> None:
        """Write the first records of the project's own run."""
        source = Path(__file__).parents[2] / "results" / "baseline.jsonl"
        lines = source.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], lines[-1]]) + "\n")

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change an element of a line, or bytes."""
        if rng.random() < 0.2:
            super().mutate(path, rng)
            return
        lines = path.read_text().splitlines()
        line = int(rng.integers(len(lines)))
        lines[line] = json.dumps(mutate_json(json.loads(lines[line]), rng))
        path.write_text("\n".join(lines) + "\n")

    def read(self, path: Path) -> str:
        """Read the records into series, as the history does."""
        from harness.history.findings import change_rows, find_all_changes
        from harness.history.series import Commits, load

        runs = path.parent / "results" / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        (runs / "run.jsonl").write_bytes(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = find_all_changes(load(path.parent / "results", Commits({}, [])))
        return json.dumps(change_rows(found))


FORMATS: tuple[Format, ...] = (
    Larcv2(),
    Larcv3(),
    PilarnetM(),
    Native(),
    Packed(),
    PackedBytes(),
    AsvDatabase(),
    OsfList(),
    Records(),
)
