"""Values from asv's database, version 2: files ``<machine>/<commit>-<environment>.json``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from typing import Any

from harness.results.store import BadRecord
from harness.spec.metrics import REL_RMSE, TIME, WRONG_LABELS, Metric

PHASES = {
    "Inference": "forward",
    "Training": "step",
    "Forward": "forward",
    "InputGradient": "input-gradient",
    "WeightGradient": "weight-gradient",
    "MapBuilding": "map",
}
"""The phase of each asv class of the suites."""

_LATEST_DATE = 4_102_444_800_000
"""Milliseconds from 1970 to 2100; a later date is damage."""

_MOST_COMBINATIONS = 100_000


@dataclass(frozen=True)
class AsvValue:
    """One number of asv's database.

    Attributes
    ----------
    commit, utc
        The measured commit and the time of the run.
    processor, gpu
        From the machine's entry; empty where it has none.
    phase
        Phase of the cell, or the asv class where that is none of the suites'.
    engine, size, batch, state
        The parameters; ``state`` is that of the kernel map, or the layer.
    where
        The cell in words.
    kind
        ``time``, ``memory``, ``error``, or the name of the tracked metric.
    metric
        With its unit; asv compares in one direction only, so that lower is better.
    value, low, high
        The result and its quartiles, where asv stores them.
    """

    commit: str
    utc: str
    processor: str
    gpu: str
    phase: str
    engine: str
    size: int
    batch: int
    state: str
    where: str
    kind: str
    metric: Metric
    value: float
    low: float | None
    high: float | None


def read_asv(folder: Path) -> Iterator[AsvValue]:
    """Read the finite values of a database.

    A file with a field of the wrong type is left out with a warning; the others are used.

    Parameters
    ----------
    folder
        With ``benchmarks.json`` and one folder per machine.

    Warns
    -----
    BadRecord
        For each file that is left out, with the reason.
    """
    if not (folder / "benchmarks.json").is_file():
        return
    benchmarks = _read_or_warn(folder / "benchmarks.json", _benchmarks) or {}
    for path in sorted(folder.glob("*/*-*.json")):
        yield from _read_or_warn(path, lambda content: _values(content, benchmarks)) or ()


class _WrongField(ValueError):
    """A field of the database has the wrong type; the message names it."""


def _read_or_warn(path: Path, parse: Any) -> Any:
    """Parse a JSON file; None, with a warning, if it cannot be read or has a wrong field."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except _WrongField as error:
        reason = f"has no valid {error}"
    except (ValueError, RecursionError):
        reason = "is no valid JSON"
    warnings.warn(f"{path} {reason} and is left out", BadRecord, stacklevel=2)
    return None


def _benchmarks(content: Any) -> dict[str, tuple[str, list[str], Any]]:
    """Return the unit, the parameter names and the version of each benchmark."""
    found = {}
    for name, about in _mapping(content, "object of benchmarks").items():
        if name != "version":
            about = _mapping(about, f"entry {name!r}")
            names = about.get("param_names", [])
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise _WrongField(f"param_names of {name!r}")
            unit = _string(about.get("unit", ""), f"unit of {name!r}")
            found[name] = (unit, names, about.get("version"))
    return found


def _values(content: Any, benchmarks: Mapping[str, tuple[str, list[str], Any]]) -> list[AsvValue]:
    """Return the finite values of one file, all of them checked.

    Results of an earlier version of a benchmark are left out, as asv does.
    """
    content = _mapping(content, "object of results")
    if "result_columns" not in content:  # machine.json
        return []
    date = content.get("date")
    if not _is_number(date) or not 0 <= date <= _LATEST_DATE:
        raise _WrongField("date")
    common = {
        "commit": _string(content.get("commit_hash"), "commit_hash"),
        "utc": datetime.fromtimestamp(date / 1000, UTC).isoformat(),
    }
    machine = _mapping(content.get("params"), "params")
    for ours, theirs in (("processor", "cpu"), ("gpu", "gpu")):
        common[ours] = _string(machine.get(theirs, ""), f"params.{theirs}")
    columns = content["result_columns"]
    if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise _WrongField("result_columns")
    found: list[AsvValue] = []
    for name, row in _mapping(content.get("results"), "results").items():
        if name in benchmarks:
            if not isinstance(row, list):
                raise _WrongField(f"results of {name!r}")
            result = dict(zip(columns, row, strict=False))
            unit, names, version = benchmarks[name]
            if version in (None, result.get("version", version)):
                found += _benchmark_values(name, unit, names, result, common)
    return found


def _benchmark_values(
    name: str,
    unit: str,
    names: list[str],
    result: Mapping[str, Any],
    common: Mapping[str, str],
) -> Iterator[AsvValue]:
    """Values of one benchmark, one per combination of its parameters."""
    suite, _, track = name.replace("track_", "").rpartition(".")
    phase = PHASES.get(suite.rpartition(".")[2], suite)
    metric = asv_metric(track, unit)
    results = _numbers(result, "result", name)
    low, high = (_numbers(result, f"stats_q_{q}", name) for q in (25, 75))
    params = result.get("params") or []
    if not isinstance(params, list) or not all(isinstance(values, list) for values in params):
        raise _WrongField(f"params of {name!r}")
    if math.prod(map(len, params)) > _MOST_COMBINATIONS:
        raise _WrongField(f"number of params of {name!r}")
    for i, combination in enumerate(islice(product(*params), len(results))):
        named = {
            key: str(value).strip("'\"") for key, value in zip(names, combination, strict=False)
        }
        value = results[i]
        if value is None or not math.isfinite(value) or "engine" not in named:
            continue
        rest = ", ".join(f"{k} {v}" for k, v in named.items() if k not in ("engine", "size"))
        size = _whole(named.get("size", ""))
        yield AsvValue(
            **common,
            phase=phase,
            engine=named["engine"],
            size=size,
            batch=_whole(named.get("batch", "")),
            state=named.get("layer", named.get("map", "")),
            where=f"{size} px, {rest}, {suite.split('.')[0]} by asv",
            kind=_kind(track, phase),
            metric=metric,
            value=value,
            low=low[i] if i < len(low) else None,
            high=high[i] if i < len(high) else None,
        )


def _kind(track: str, phase: str) -> str:
    """The metric's kind as records have it: their error is that of the gradients in a step."""
    error = "gradient_error" if phase == "step" else "error"
    known = {
        "time": "time",
        "peak_memory": "memory",
        "energy": "energy",
        error: "error",
        "wrong_labels": "wrong_labels",
    }
    return known.get(track, f"asv {track}")


def asv_metric(track: str, unit: str) -> Metric:
    """Return the metric of a tracked value, by its unit."""
    if unit == "seconds":
        return TIME
    if track == WRONG_LABELS.key:
        return WRONG_LABELS
    if unit in ("bytes", "joules"):
        return Metric(
            track, track.replace("_", " "), "J" if unit == "joules" else unit, "lower", 0.05
        )
    return Metric(track, track.replace("_", " "), "", "lower", REL_RMSE.tolerance)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongField(what)
    return value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _WrongField(what)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(result: Mapping[str, Any], column: str, name: str) -> list[float | None]:
    """Return a column of numbers and Nones; empty where there is none."""
    values = result.get(column)
    if values is None:
        return []
    if not isinstance(values, list) or not all(v is None or _is_number(v) for v in values):
        raise _WrongField(f"{column} of {name!r}")
    try:
        return [None if v is None else float(v) for v in values]
    except OverflowError:
        raise _WrongField(f"{column} of {name!r}") from None


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
