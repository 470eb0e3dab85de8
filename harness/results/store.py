"""Results as append-only JSON lines, read as one pandas table."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from harness.errors import BadInput
from harness.spec.cell import DEVICES, MAPS, PHASES, PRECISIONS, canonical, digest

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
OUTCOMES = ("ok", "wrong", "out-of-memory", "timeout", "crashed", "unavailable")
RESULTS = Path("results")
AGAINST = ".against"
SHARED = ("cell", "precision_readback", "machine", "versions")

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
    "cell.layer",
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
    ordered = {name: value for name, value in record.items() if name not in SHARED}
    ordered |= {name: record[name] for name in SHARED if name in record}
    line = json.dumps(ordered, separators=(",", ":"), allow_nan=False).encode() + b"\n"
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
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write
            os.fsync(handle)
        except OSError as error:
            with contextlib.suppress(OSError):  # a device has no length to restore
                os.ftruncate(handle, size)
            raise BadInput(_unwritable(path, error)) from None
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Make sure that records can go to a file, before hours are spent on them.

    Raises
    ------
    BadInput
        If the file cannot be opened for writing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    except OSError as error:
        raise BadInput(_unwritable(path, error)) from None


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
    for own, shared in _halves(paths):
        yield own | shared


_MARK = b',"cell":{'


def _halves(paths: Iterable[Path]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what a record has of its own, and what it shares with others (one object for all).

    Most of a record is its cell and its machine, which repeat. ``append`` writes them last, so
    that their text is recognised without being parsed and checked again.
    """
    known: dict[bytes, dict[str, Any]] = {}
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the results {path}: {error.strerror}") from None
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line or line.isspace():
                continue
            start, mark, end = line.partition(_MARK)
            shared = known.get(end) if mark else None
            try:
                if shared is not None:
                    own = orjson.loads(start + b"}")
                    wrong = _own_problem(own)
                else:
                    record = orjson.loads(line)
                    wrong = problem(record)
                    if not wrong:
                        shared = {name: record.pop(name) for name in SHARED if name in record}
                        own = record
                        if _is_object(start + b"}"):
                            known[end] = shared
            except ValueError:
                wrong = "not a whole JSON record; left out"
            if wrong or shared is None:
                warnings.warn(f"{path}:{number}: {wrong}", BadRecord, stacklevel=3)
            else:
                yield own, shared


def _is_object(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


_NUMBERS = {int, float}
_SERIES = (("host_seconds", _NUMBERS), ("device_seconds", _NUMBERS), ("turn_samples", {int}))


def problem(record: Any) -> str:
    """Say what is wrong with a record; empty for a valid one."""
    if not isinstance(record, dict):
        return "not a record; left out"
    return _own_problem(record) or _shared_problem(record)


def _own_problem(record: Mapping[str, Any]) -> str:
    schema = record.get("schema")
    if type(schema) is not int or schema < 1:
        return "a record without a schema version; left out"
    if schema > SCHEMA:
        return f"a record of schema {schema}, newer than {SCHEMA}; update sscn-bench to read it"
    if record.get("outcome") not in OUTCOMES:
        return f"a record with the outcome {record.get('outcome')!r}; left out"
    for name in ("run", "utc", "commit"):
        if type(record.get(name)) is not str:
            return f"a record without {name}; left out"
    for name, allowed in _SERIES:
        samples = record.get(name)
        if samples is None:
            continue
        if type(samples) is not list or not set(map(type, samples)) <= allowed:
            return f"a record whose {name} are not numbers; left out"
    if record["outcome"] == "ok" and not record.get("host_seconds"):
        return "a record that is ok but has no times; left out"
    for name in ("memory", "error"):
        part = record.get(name)
        if part is not None and type(part) is not dict:
            return f"a record whose {name} is not an object; left out"
    return ""


def _shared_problem(shared: Mapping[str, Any]) -> str:
    cell = shared.get("cell")
    if not isinstance(cell, dict):
        return "a record without a cell; left out"
    for name, allowed in _ALLOWED:
        if cell.get(name) not in allowed:
            return f"a record with cell.{name} {cell.get(name)!r}; left out"
    if not all(isinstance(cell.get(name), str) for name in ("suite", "backend")):
        return "a record whose cell names no suite or backend; left out"
    if not all(type(cell.get(name)) is int for name in ("size", "batch")):
        return "a record whose cell has no size or batch; left out"
    for name in ("options", "model", "events"):
        if not isinstance(cell.get(name), dict):
            return f"a record whose cell has no {name}; left out"
    for name in ("machine", "versions", "precision_readback"):
        part = shared.get(name)
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
    import numpy as np
    import pandas as pd

    collecting = gc.isenabled()
    gc.disable()  # a hundred thousand records are no garbage, and looking costs seconds
    try:
        halves = list(_halves([Path(path) for path in paths]))
        columns = _columns([own for own, _ in halves])
        distinct = {id(shared): shared for _, shared in halves}
        position = {key: place for place, key in enumerate(distinct)}
        place = np.array([position[id(shared)] for _, shared in halves], dtype=np.intp)
        for name, values in _columns(list(map(_named, distinct.values()))).items():
            columns[name] = pd.Series(values).take(place).array  # its type is found once
    finally:
        if collecting:
            gc.enable()
    for name in (*CELL_COLUMNS, "cell.name"):
        columns.setdefault(name, [None] * len(halves))
    return pd.DataFrame(columns)


def _named(shared: dict[str, Any]) -> dict[str, Any]:
    """Give a cell its name; write its options and its layer, if any, as texts to group rows by."""
    cell = shared["cell"]
    texts = {"options": canonical(cell["options"]), "layer": str(cell.get("layer", ""))}
    return shared | {"cell": cell | texts | {"name": digest(canonical(cell))}}


def _columns(rows: list[dict[str, Any]], prefix: str = "") -> dict[str, Any]:
    """Turn rows into columns, following nested objects; whole columns at a time, for speed."""
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(chain.from_iterable(rows)):
        try:
            values = list(map(itemgetter(key), rows))
        except KeyError:  # not in every row
            values = [row.get(key) for row in rows]
        if dict in set(map(type, values)):
            nested = [value if type(value) is dict else {} for value in values]
            columns |= _columns(nested, f"{prefix}{key}.")
        else:
            columns[f"{prefix}{key}"] = values
    return columns


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
