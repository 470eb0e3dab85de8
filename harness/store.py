"""Results as append-only JSON lines, read as one pandas table."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell import DEVICES, MAPS, PHASES, PRECISIONS, canonical, digest
from harness.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
OUTCOMES = ("ok", "wrong", "out-of-memory", "timeout", "crashed", "unavailable")
RESULTS = Path("results")
AGAINST = ".against"

CELL_COLUMNS = (
    "cell.suite",
    "cell.backend",
    "cell.options",
    "cell.device",
    "cell.precision",
    "cell.dim",
    "cell.size",
    "cell.batch",
    "cell.phase",
    "cell.map",
    "cell.model.filters",
    "cell.model.depth",
    "cell.model.reps",
    "cell.model.classes",
    "cell.events.set",
    "cell.events.sha256",
    "cell.events.seed",
)


class BadRecord(UserWarning):
    """A line of a results file that was left out, with the file and the number of the line."""


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file as one line, whole or not at all.

    Writers take turns by a lock on the file; the line leaves in one write. A half line that an
    earlier, killed writer may have left is closed first, so that it spoils itself alone.

    Raises
    ------
    BadInput
        If the file cannot be written or the disk is full.
    """
    line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(_unwritable(path, error)) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            if os.write(handle, line) != len(line):
                raise OSError(28, os.strerror(28))  # a short write: the disk is full
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, size)
            raise BadInput(_unwritable(path, error)) from None
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> str:
    return f"cannot write results to {path} ({error.strerror}); give another file with --out"


def records(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the valid records of some files in order; warn of every other line.

    Warns
    -----
    BadRecord
        ``FILE:LINE: what is wrong`` for a line that is no JSON, not a record or of a newer schema.

    Raises
    ------
    BadInput
        If a file cannot be read.
    """
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the results {path}: {error.strerror}") from None
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record, wrong = None, "not a whole JSON record; left out"
            else:
                wrong = problem(record)
            if wrong:
                warnings.warn(f"{path}:{number}: {wrong}", BadRecord, stacklevel=2)
            else:
                yield record


_NUMBER = (int, float)


def problem(record: Any) -> str:
    """Say what is wrong with a record; empty for a valid one."""
    if not isinstance(record, dict):
        return "not a record; left out"
    schema = record.get("schema")
    if not isinstance(schema, int) or schema < 1:
        return "a record without a schema version; left out"
    if schema > SCHEMA:
        return f"a record of schema {schema}, newer than {SCHEMA}; update sscn-bench to read it"
    cell = record.get("cell")
    if not isinstance(cell, dict):
        return "a record without a cell; left out"
    for name, allowed in _ALLOWED:
        if cell.get(name) not in allowed:
            return f"a record with cell.{name} {cell.get(name)!r}; left out"
    if not all(isinstance(cell.get(name), str) for name in ("suite", "backend")):
        return "a record whose cell names no suite or backend; left out"
    if not all(type(cell.get(name)) is int for name in ("size", "batch")):
        return "a record whose cell has no size or batch; left out"
    if not isinstance(cell.get("options", {}), dict):
        return "a record whose cell.options is not an object; left out"
    if not isinstance(cell.get("model"), dict) or not isinstance(cell.get("events"), dict):
        return "a record whose cell has no model or events; left out"
    if record.get("outcome") not in OUTCOMES:
        return f"a record with the outcome {record.get('outcome')!r}; left out"
    for name in ("run", "utc", "commit"):
        if not isinstance(record.get(name), str):
            return f"a record without {name}; left out"
    for name in ("host_seconds", "device_seconds"):
        samples = record.get(name)
        if samples is None:
            continue
        if not isinstance(samples, list) or not all(type(s) in _NUMBER for s in samples):
            return f"a record whose {name} are not numbers; left out"
    if record["outcome"] == "ok" and not record.get("host_seconds"):
        return "a record that is ok but has no times; left out"
    for name in ("memory", "error", "machine", "versions", "precision_readback"):
        part = record.get(name)
        if part is not None and not isinstance(part, dict):
            return f"a record whose {name} is not an object; left out"
    return ""


_ALLOWED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("device", DEVICES),
    ("precision", PRECISIONS),
    ("phase", PHASES),
    ("map", MAPS),
    ("dim", (2, 3)),
)


def read(paths: Iterable[Path | str] | Path | str) -> pd.DataFrame:
    """Read records into a table with one row each.

    Parameters
    ----------
    paths : path or iterable of paths
        Files of JSON lines.

    Returns
    -------
    DataFrame
        Nested keys are joined by dots (``cell.backend``, ``memory.peak_rss_bytes``); lists stay
        lists. Two exceptions, so that rows can be grouped: ``cell.options`` is canonical JSON
        text, and ``cell.name`` is the name of the cell. ``CELL_COLUMNS`` are always there.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    import pandas as pd

    collecting = gc.isenabled()
    gc.disable()  # a hundred thousand records are no garbage, and looking costs seconds
    try:
        rows = list(records([Path(path) for path in paths]))
        columns = _flatten(rows)
    finally:
        if collecting:
            gc.enable()
    options = columns.pop("cell.options", [{}] * len(rows))
    columns["cell.options"] = [canonical(value) if value else "{}" for value in options]
    for name in CELL_COLUMNS:
        columns.setdefault(name, [None] * len(rows))
    columns["cell.name"] = _names(columns, rows)
    return pd.DataFrame(columns)


def _flatten(rows: list[dict[str, Any]], prefix: str = "") -> dict[str, list[Any]]:
    """Turn rows into columns, following nested objects; whole columns at a time, for speed."""
    columns: dict[str, list[Any]] = {}
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
    for key in seen:
        values = [row.get(key) for row in rows]
        name = f"{prefix}{key}"
        if name != "cell.options" and any(type(value) is dict for value in values):
            empty: dict[str, Any] = {}
            nested = [value if type(value) is dict else empty for value in values]
            columns |= _flatten(nested, f"{name}.")
        else:
            columns[name] = values
    return columns


def _names(columns: Mapping[str, list[Any]], rows: list[dict[str, Any]]) -> list[str]:
    """Name every row's cell, hashing each distinct cell once."""
    known: dict[tuple[Any, ...], str] = {}
    names = []
    for row, key in zip(rows, zip(*(columns[c] for c in CELL_COLUMNS), strict=True), strict=True):
        if key not in known:
            known[key] = digest(canonical(row["cell"]))
        names.append(known[key])
    return names


def resolve(spec: str, results: Path = RESULTS) -> list[Path]:
    """Find the files that a user means.

    Parameters
    ----------
    spec : str
        A file; ``latest``, the newest run under ``results/runs``; ``baseline``, the reference
        records that the project keeps; or a commit (at least six digits), all runs of which are
        meant.
    results : Path
        The folder of results.

    Raises
    ------
    BadInput
        If there is nothing of that name.
    """
    if Path(spec).is_file():
        return [Path(spec)]
    if spec == "baseline":
        path = results / "baseline.jsonl"
        if not path.is_file():
            raise BadInput(f"there are no reference records at {path}; name a file instead")
        return [path]
    runs = stored(results)
    if spec == "latest":
        own = [path for path in runs if AGAINST not in path.suffixes]
        if not own:
            raise BadInput(f"there are no runs under {results / 'runs'}; start with: harness run")
        return [max(own, key=lambda path: (path.stat().st_mtime_ns, path.name))]
    if len(spec) >= 6 and all(digit in "0123456789abcdef" for digit in spec.lower()):
        needle = f'"commit":"{spec.lower()}'.encode()
        found = [path for path in [*runs, results / "baseline.jsonl"] if _holds(path, needle)]
        if found:
            return found
        raise BadInput(f"no stored run measured the commit {spec}; see python -m harness history")
    raise BadInput(
        f"{spec!r} is neither a file of records, a measured commit, 'latest' nor 'baseline'"
    )


def _holds(path: Path, needle: bytes) -> bool:
    return path.is_file() and needle in path.read_bytes()


def stored(results: Path = RESULTS) -> list[Path]:
    """Return the files of all stored runs, by name, which starts with the time."""
    return sorted((results / "runs").glob("*.jsonl"))


def load(spec: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read what a user means by ``resolve``; of a commit, only that commit's records."""
    frame = read(resolve(spec, results))
    if Path(spec).is_file() or spec in ("latest", "baseline"):
        return frame
    return frame[frame["commit"].str.startswith(spec.lower())].reset_index(drop=True)
