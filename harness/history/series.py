"""Every stored run as time series over commits, through one loader: our records and asv's."""

from __future__ import annotations

import json
import math
import subprocess
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.results import store
from harness.results.summary import Measured, pool
from harness.spec.metrics import REL_RMSE, TIME, Metric

if TYPE_CHECKING:
    import pandas as pd

DIRTY = "+"
"""Follows the name of a commit whose files had been changed when it was measured."""


@dataclass(frozen=True)
class Key:
    """What a series is about; one curve, and one figure, each.

    Attributes
    ----------
    machine
        Processor, GPU and threads: another machine is another series.
    """

    engine: str
    size: int
    where: str
    metric: Metric
    machine: str


@dataclass(frozen=True)
class Point:
    """One commit's value.

    Attributes
    ----------
    order
        Place in the history: number of the commit, then time.
    value, low, high
        The metric and its quartiles; None where the outcome is not ``ok``.
    versions
        Of the engine and of torch.
    """

    order: tuple[float, str]
    commit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    outcome: str = "ok"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commits:
    """The order of commits.

    Attributes
    ----------
    places
        Number of each commit, ancestors first.
    times
        Commit times in seconds since 1970, ascending, to place what is not among them.
    """

    places: Mapping[str, int]
    times: Sequence[float]

    @classmethod
    def of(cls, repository: Path) -> Commits:
        """Read a repository; empty where there is none, so that time alone orders the points."""
        command = ["git", "-C", str(repository), "log", "--all", "--topo-order", "--reverse"]
        try:
            told = subprocess.run(
                [*command, "--format=%H %ct"], check=True, capture_output=True, text=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            return cls({}, [])
        lines = [line.split() for line in told.splitlines()]
        places = {commit: number for number, (commit, _) in enumerate(lines)}
        return cls(places, sorted(float(seconds) for _, seconds in lines))

    def order(self, commit: str, utc: str) -> tuple[float, str]:
        """Place a measurement: by its commit, or else after the commits of its time."""
        if commit in self.places:
            return float(self.places[commit]), utc
        try:
            seconds = datetime.fromisoformat(utc.replace("Z", "+00:00")).timestamp()
        except ValueError:
            return -1.0, utc
        return bisect_right(self.times, seconds) - 0.5, utc


def load(results: Path, commits: Commits) -> dict[Key, list[Point]]:
    """Read all stored runs and asv's database.

    Parameters
    ----------
    results
        The folder of results: ``runs`` and ``history`` hold records, ``asv`` its database.
    commits
        Their order.

    Returns
    -------
    dict
        Points in the order of commits, by series.
    """
    series: dict[Key, list[Point]] = defaultdict(list)
    for key, point in (*_of_records(_files(results), commits), *_of_asv(results / "asv", commits)):
        series[key].append(point)
    return {key: sorted(points, key=lambda p: p.order) for key, points in series.items()}


def _files(results: Path) -> list[Path]:
    found = [*store.stored(results), *sorted((results / "history").glob("*.jsonl"))]
    baseline = results / "baseline.jsonl"
    return [baseline, *found] if baseline.is_file() else found


def _of_records(files: Sequence[Path], commits: Commits) -> Iterator[tuple[Key, Point]]:
    """Points of our own records; all runs of a commit on a machine are pooled."""
    frame = store.read(files)
    if frame.empty:
        return
    machines = _machines(frame)
    dirty = frame["dirty"].tolist() if "dirty" in frame.columns else [False] * len(frame)
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, (commit, machine) in enumerate(zip(frame["commit"].tolist(), machines, strict=True)):
        rows[commit + (DIRTY if dirty[i] is True else ""), machine].append(i)
    for (commit, machine), own in rows.items():
        part = frame.iloc[own]
        order = commits.order(commit.rstrip(DIRTY), str(part["utc"].min()))
        if commit.endswith(DIRTY):
            order = order[0] + 0.25, order[1]  # after the commit itself
        versions = _versions(part)
        for measured in pool(part.reset_index(drop=True)).values():
            known = {
                name: versions[name]
                for name in (measured.cell["backend"], "torch")
                if name in versions
            }
            yield from _points(measured, commit, machine, order, known)


def _machines(frame: pd.DataFrame) -> list[str]:
    """Name the machine of each record by what decides its speed; hosts come and go."""
    columns = [
        frame[f"machine.{name}"].tolist()
        if f"machine.{name}" in frame.columns
        else [None] * len(frame)
        for name in ("processor", "gpu", "threads")
    ]
    return [
        machine_name(_text(processor), _text(gpu), _text(threads))
        for processor, gpu, threads in zip(*columns, strict=True)
    ]


def machine_name(processor: str, gpu: str, threads: str) -> str:
    """A machine in words."""
    parts = [processor or "unknown machine", gpu, f"{threads} threads" if threads else ""]
    return ", ".join(part for part in parts if part)


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) else str(value)


def _versions(frame: pd.DataFrame) -> dict[str, str]:
    """The versions that the records of one commit name; the last of several."""
    found = {}
    for column in frame.columns:
        if str(column).startswith("versions."):
            values = [v for v in frame[column].tolist() if isinstance(v, str)]
            if values:
                found[str(column).removeprefix("versions.")] = values[-1]
    return found


def _points(
    m: Measured, commit: str, machine: str, order: tuple[float, str], versions: Mapping[str, str]
) -> Iterator[tuple[Key, Point]]:
    """The points of a cell: time, memory and error."""

    def point(value: float | None, low: float | None = None, high: float | None = None) -> Point:
        return Point(order, commit, value, low, high, m.side.outcome, versions)

    def key(metric: Metric) -> Key:
        return Key(m.engine, m.cell["size"], m.where, metric, machine)

    if m.ok:
        yield key(TIME), point(m.seconds, m.low, m.high)
        for metric, value in ((m.memory_metric, m.memory), (m.error_metric, m.error)):
            if value is not None:
                yield key(metric), point(value)
    elif m.side.outcome != "unavailable":
        yield key(TIME), point(None)


def _of_asv(folder: Path, commits: Commits) -> Iterator[tuple[Key, Point]]:
    """Points of asv's database, version 2: ``<machine>/<commit>-<environment>.json``."""
    about = _json(folder / "benchmarks.json")
    if not about:
        return
    for path in sorted(folder.glob("*/*-*.json")):
        found = _json(path)
        if not found or "result_columns" not in found:
            continue
        utc = datetime.fromtimestamp(found["date"] / 1000, UTC).isoformat()
        order = commits.order(found["commit_hash"], utc)
        facts = found["params"]
        machine = machine_name(facts.get("cpu", ""), facts.get("gpu", ""), "")
        for name, row in found["results"].items():
            if name in about:
                result = dict(zip(found["result_columns"], row, strict=False))
                yield from _asv_points(
                    name, about[name], result, found["commit_hash"], machine, order
                )


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _asv_points(
    name: str,
    about: Mapping[str, Any],
    result: Mapping[str, Any],
    commit: str,
    machine: str,
    order: tuple[float, str],
) -> Iterator[tuple[Key, Point]]:
    """Points of one asv benchmark, one for each combination of its parameters."""
    suite, _, track = name.replace("track_", "").rpartition(".")
    metric = _asv_metric(track, about.get("unit", ""))
    values = result.get("result") or []
    for i, combination in enumerate(product(*(result.get("params") or []))):
        named = {
            key: str(value).strip("'\"")
            for key, value in zip(about.get("param_names", []), combination, strict=False)
        }
        value = values[i] if i < len(values) else None
        if value is None or value != value or "engine" not in named:
            continue
        rest = ", ".join(f"{k} {v}" for k, v in named.items() if k not in ("engine", "size"))
        size = int(named["size"]) if named.get("size", "").isdigit() else 0
        where = f"{size} px, {rest}, {suite.split('.')[0]} by asv"
        yield (
            Key(named["engine"], size, where, metric, machine),
            Point(order, commit, value, _at(result, "stats_q_25", i), _at(result, "stats_q_75", i)),
        )


def _at(result: Mapping[str, Any], column: str, i: int) -> float | None:
    values = result.get(column)
    return values[i] if isinstance(values, list) and i < len(values) else None


def _asv_metric(track: str, unit: str) -> Metric:
    """A metric for what asv tracks: by its unit; asv knows only lower-is-better."""
    if unit == "seconds":
        return TIME
    if unit in ("bytes", "joules"):
        return Metric(
            track, track.replace("_", " "), "J" if unit == "joules" else unit, "lower", 0.05
        )
    return Metric(track, track.replace("_", " "), "", "lower", REL_RMSE.tolerance)


def level_values(points: Sequence[Point], metric: Metric) -> list[float]:
    """Return positive values for change-point detection, with noise that it may ignore.

    A metric without a unit has an absolute tolerance; added to its values, it keeps a relative
    error that wanders between 1e-7 and 3e-7 from looking like a tripling.
    """
    floor = metric.tolerance if not metric.unit else 1e-12
    return [max(p.value or 0.0, 0.0) + floor for p in finite(points)]


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that have a value."""
    return [p for p in points if p.value is not None and math.isfinite(p.value)]
