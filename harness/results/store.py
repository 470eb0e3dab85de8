"""Results as append-only JSON lines, read as one pandas table."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from harness.errors import BadInput
from harness.results.environment import select
from harness.results.record import EMPTY, SCHEMA, Entries, Record
from harness.results.validation import is_record, problem
from harness.spec.cell import Cell, canonical, digest
from harness.terminal import plain, program

if TYPE_CHECKING:
    import pandas as pd

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
    "cell.model.inputs",
    "cell.model.slope",
    "cell.model.eps",
    "cell.model.momentum",
    "cell.events.set",
    "cell.events.sha256",
    "cell.events.seed",
    "cell.events.count",
    "cell.layer",
    "cell.weights",
)


class BadRecord(UserWarning):
    """A line of a results file that was left out, with the file and the number of the line."""


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a finished record to a file as one line, whole or not at all.

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
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write
            os.fsync(handle)
        except OSError as error:
            with contextlib.suppress(OSError):  # a device has no length to restore
                os.ftruncate(handle, size)
            raise BadInput(_unwritable(path, error)) from None
    finally:
        os.close(handle)


def append_record(
    path: Path,
    cell: Cell,
    entries: Entries,
    *,
    run: str,
    commit: str,
    dirty: bool,
    environment: str = "",
    seed: int = 0,
    round: int = 0,
) -> Record:
    """Complete the entries of a worker to a record, append it to a file, and return it.

    Parameters
    ----------
    path : Path
        A file of JSON lines.
    cell, entries, run, commit, dirty, environment, seed, round
        As for ``make_record``.

    Raises
    ------
    BadInput
        If the file cannot be written or the disk is full.
    """
    record = make_record(
        cell,
        entries,
        run=run,
        commit=commit,
        dirty=dirty,
        environment=environment,
        seed=seed,
        round=round,
    )
    append(path, record)
    return record


def make_record(
    cell: Cell,
    entries: Entries,
    *,
    run: str,
    commit: str,
    dirty: bool,
    environment: str = "",
    seed: int = 0,
    round: int = 0,
) -> Record:
    """Complete what a worker found to a record.

    Parameters
    ----------
    cell : Cell
        The measured cell.
    entries : Entries
        The results. Missing fields that every record has are filled with empty values.
    run : str
        Identity of the run.
    commit, dirty : str, bool
        Commit of the measured engines, and whether files differed from it.
    environment : str
        Environment that the user named; empty for the default one.
    seed : int
        Seed of the order of cells and turns.
    round : int
        Number of the round, from 0.
    """
    record: Record = {
        "schema": SCHEMA,
        "run": run,
        "utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit,
        "dirty": dirty,
        "round": round,
        "seed": seed,
        "cell": cell.to_json(),  # type: ignore[typeddict-item]  # the cell as JSON values
        **EMPTY,
        **entries,  # type: ignore[typeddict-item]  # which name no environment
    }
    if environment:
        record["environment"] = environment
    return record


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


def records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the valid records of some files in order; warn of every other line.

    Raises
    ------
    BadInput
        If a file cannot be read.

    Warns
    -----
    BadRecord
        ``FILE:LINE: FIELD: problem`` for a line that is no JSON, not a valid record or of a newer
        schema.
    """
    for path in paths:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the results {path}: {error.strerror}") from None
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line or line.isspace():
                continue
            try:
                record = orjson.loads(line)
                wrong = problem(record)
            except ValueError:
                wrong = "not a whole JSON record; left out"
            if wrong:
                warnings.warn(f"{path}:{number}: {wrong}", BadRecord, stacklevel=2)
            else:
                if record.get("reason"):  # it is printed, and may come from anybody's engine
                    record["reason"] = plain(record["reason"])
                yield record


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

    columns: dict[str, list[Any]] = {}
    repeated: dict[bytes, int] = {}
    places: list[int] = []
    for row, record in enumerate(records([Path(path) for path in paths])):
        own: dict[str, Any] = {**record}
        key = orjson.dumps({name: own.pop(name) for name in REPEATED if name in own})
        places.append(repeated.setdefault(key, len(repeated)))
        # Records are split one by one: 100,000 of them as dicts would take gigabytes.
        _add_row(columns, own, row)
    _fill(columns, len(places))
    shared: dict[str, list[Any]] = {}
    for row, key in enumerate(repeated):
        _add_row(shared, _named(orjson.loads(key)), row)
    _fill(shared, len(repeated))
    table = pd.DataFrame(columns | {k: pd.Series(v).take(places).array for k, v in shared.items()})
    missing = [name for name in (*CELL_COLUMNS, "cell.name") if name not in table.columns]
    return table.assign(**dict.fromkeys(missing)) if missing else table


REPEATED = ("cell", "precision_readback", "machine", "versions")
"""Parts of a record that many records share: half of the text, which is parsed once.

100,000 records of one file (183 MB) are read in 12 s of processor time with this and in
19 s without, on two cores of a busy Xeon at 2.5 GHz.
"""


def _named(shared: dict[str, Any]) -> dict[str, Any]:
    """Give a cell its name and every field; write its options as text to group rows by."""
    stored = shared["cell"]
    cell = asdict(Cell.from_json(stored))
    texts = {"options": canonical(stored["options"]), "name": digest(canonical(stored))}
    return shared | {"cell": cell | texts}


def _add_row(
    columns: dict[str, list[Any]], values: Mapping[str, Any], row: int, prefix: str = ""
) -> None:
    """Add one record to the columns; columns that earlier rows did not have are filled up."""
    for name, value in values.items():
        key = prefix + name
        if type(value) is dict:
            _add_row(columns, value, row, key + ".")
            continue
        column = columns.setdefault(key, [])
        if len(column) != row:
            column.extend([None] * (row - len(column)))
        column.append(value)


def _fill(columns: Mapping[str, list[Any]], rows: int) -> None:
    """Fill up the columns that the last rows did not have."""
    for column in columns.values():
        column.extend([None] * (rows - len(column)))


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
            raise BadInput(
                f"there are no reference records at {path}: they are part of a clone of "
                "sscn-bench; go to its folder, or name a file of records"
            )
        return [path]
    runs = stored(results)
    if spec == "latest":
        last = newest(path for path in runs if AGAINST not in path.suffixes)
        if last is None:
            raise BadInput(
                f"there are no runs under {results / 'runs'}; start with: {program()} run"
            )
        return [last]
    if len(spec) >= 6 and all(digit in "0123456789abcdef" for digit in spec.lower()):
        needle = f'"commit":"{spec.lower()}'.encode()
        found = [path for path in [*runs, results / "baseline.jsonl"] if _holds(path, needle)]
        if found:
            return found
        raise BadInput(f"no stored run measured the commit {spec}; see: {program()} history")
    raise BadInput(
        f"{spec!r} is neither a file of records, a measured commit, 'latest' nor 'baseline'"
    )


def _holds(path: Path, needle: bytes) -> bool:
    return path.is_file() and needle in path.read_bytes()


def newest(paths: Iterable[Path]) -> Path | None:
    """Return the file whose last record was written last; None if no file holds a record.

    The time is the record's own: copying a file, or a checkout, changes the file's time alone.
    """
    times = {path: _last_utc(path) for path in paths}
    held = [path for path, utc in times.items() if utc]
    return max(held, key=lambda path: (times[path], path.name), default=None)


def _last_utc(path: Path) -> str:
    """Return when the last valid record of a file was written; empty without one."""
    for line in reversed(path.read_bytes().split(b"\n")):
        try:
            record = orjson.loads(line)
        except ValueError:
            continue
        if is_record(record):
            return record["utc"]
    return ""


def stored(results: Path = RESULTS) -> list[Path]:
    """Return the files of all stored runs, by name, which starts with the time."""
    return sorted((results / "runs").glob("*.jsonl"))


def load(spec: str, results: Path = RESULTS) -> pd.DataFrame:
    """Read the records that a user means.

    Parameters
    ----------
    spec : str
        As for ``resolve``; of a commit, only that commit's records. ``SPEC@ENVIRONMENT`` means the
        records of one environment.
    results : Path
        The folder of results.

    Raises
    ------
    BadInput
        If there is nothing of that name, or no record of that environment.
    """
    run, _, name = (spec, "", "") if Path(spec).is_file() else spec.partition("@")
    frame = read(resolve(run, results))
    if not (Path(run).is_file() or run in ("latest", "baseline")):
        frame = frame[frame["commit"].str.startswith(run.lower())].reset_index(drop=True)
    return select(frame, name) if name else frame
