"""Records, asv's database, and OSF's list of files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from tests.fuzz.format import Format
from tests.fuzz.mutations import Rng, mutate_json


class AsvDatabase(Format):
    """asv's database: a file of results beside a valid list of benchmarks."""

    name = "asv-database"
    always_read = True
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
    always_read = True

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
