"""Series of measurements over commits, read from all stored runs and from asv's database."""

from __future__ import annotations

import math
import re
import subprocess
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compare.comparison import MUCH_STOLEN
from harness.history.asv_database import AsvValue, read_asv
from harness.results import store
from harness.results.environment import DEFAULT
from harness.results.summary import CellSummary, summarize
from harness.spec.metrics import ENERGY, TIME, WRONG_LABELS, Metric

if TYPE_CHECKING:
    import pandas as pd

DIRTY = "+"
"""Suffix of the name of a commit whose files had been changed when it was measured."""


@dataclass(frozen=True)
class Key:
    """The identity of a series; each series is one curve in a figure of its own.

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
    """The value of one commit.

    Attributes
    ----------
    order
        Position in the history: number of the commit, then time.
    value, low, high
        The metric and its quartiles; None where the outcome is not ``ok``.
    versions
        Of the engine and of torch.
    environment
        Its name.
    disturbed
        Whether the GPU's clock was held down, or the host took much of the processors' time.
    """

    order: tuple[float, str]
    commit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    outcome: str = "ok"
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: str = DEFAULT
    disturbed: bool = False


@dataclass(frozen=True)
class Commits:
    """The order of commits.

    Attributes
    ----------
    places
        Number of each commit, ancestors first.
    times
        Commit times in seconds since 1970, ascending, for measurements of unknown commits.
    """

    places: Mapping[str, int]
    times: Sequence[float]

    @classmethod
    def of(cls, repository: Path) -> Commits:
        """Read the order from a repository; without one, points are ordered by time alone."""
        command = ["git", "-C", str(repository), "log", "--all", "--topo-order", "--reverse"]
        try:
            listed = subprocess.run(
                [*command, "--format=%H %ct"], check=True, capture_output=True, text=True
            ).stdout
        except (OSError, subprocess.CalledProcessError):
            return cls({}, [])
        lines = [line.split() for line in listed.splitlines()]
        places = {commit: number for number, (commit, _) in enumerate(lines)}
        return cls(places, sorted(float(seconds) for _, seconds in lines))

    def order(self, commit: str, utc: str) -> tuple[float, str]:
        """Return the position of a measurement: by its commit, else by time among the commits."""
        if commit in self.places:
            return float(self.places[commit]), utc
        try:
            seconds = datetime.fromisoformat(utc.replace("Z", "+00:00")).timestamp()
        except ValueError:
            return -1.0, utc
        return bisect_right(self.times, seconds) - 0.5, utc


Identity = tuple[str, str, str, str, int, int, str, str]
"""Commit, machine, phase, engine, size, batch, map or layer, metric: one measured number."""


def load(results: Path, commits: Commits) -> dict[Key, list[Point]]:
    """Read all stored runs and asv's database.

    A number that both a record and asv's database hold appears once, in the record's series.

    Parameters
    ----------
    results
        The folder of results: ``runs`` and ``history`` hold records, ``asv`` its database.
    commits
        Their order.

    Returns
    -------
    dict
        Points by series, in the order of commits; those of one commit by versions, then by name
        of the environment.
    """
    series: dict[Key, list[Point]] = defaultdict(list)
    recorded: set[Identity] = set()
    for key, point, identity in _of_records(_files(results), commits):
        series[key].append(point)
        recorded.add(identity)
    for value in read_asv(results / "asv"):
        if _asv_identity(value) not in recorded:
            key, point = _of_asv(value, commits)
            series[key].append(point)
    return {
        key: sorted(points, key=lambda p: (p.order, _version_order(p.versions), p.environment))
        for key, points in series.items()
    }


def _version_order(versions: Mapping[str, str]) -> list[list[int]]:
    """Order the points of one commit, of several environments, by their versions."""
    return [[int(digits) for digits in re.findall(r"\d+", text)] for text in versions.values()]


def _files(results: Path) -> list[Path]:
    found = [*store.stored(results), *sorted((results / "history").glob("*.jsonl"))]
    baseline = results / "baseline.jsonl"
    return [baseline, *found] if baseline.is_file() else found


def _of_records(files: Sequence[Path], commits: Commits) -> Iterator[tuple[Key, Point, Identity]]:
    """Points of our own records; runs of a commit on a machine in one environment are pooled."""
    frame = store.read(files)
    if frame.empty:
        return
    machines = _machines(frame)
    dirty = frame["dirty"].tolist() if "dirty" in frame.columns else [False] * len(frame)
    rows: dict[tuple[str, tuple[str, str, str]], list[int]] = defaultdict(list)
    for i, (commit, machine) in enumerate(zip(frame["commit"].tolist(), machines, strict=True)):
        rows[commit + (DIRTY if dirty[i] is True else ""), machine].append(i)
    for (commit, machine), own in rows.items():
        part = frame.iloc[own]
        order = commits.order(commit.rstrip(DIRTY), str(part["utc"].min()))
        if commit.endswith(DIRTY):
            order = order[0] + 0.25, order[1]  # after the commit itself
        for measured in summarize(part.reset_index(drop=True)):
            facts = measured.environment.facts
            versions = {
                name: str(facts[f"versions.{name}"])
                for name in (measured.cell.backend, "torch")
                if f"versions.{name}" in facts
            }
            environment = facts["environment"]
            yield from _points(measured, commit, machine, order, versions, environment)


def _machines(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Processor, GPU and threads of each record: what decides the speed, unlike the host name."""
    columns = [
        frame[f"machine.{name}"].tolist()
        if f"machine.{name}" in frame.columns
        else [None] * len(frame)
        for name in ("processor", "gpu", "threads")
    ]
    return [
        (_text(processor), _text(gpu), _text(threads))
        for processor, gpu, threads in zip(*columns, strict=True)
    ]


def machine_name(processor: str, gpu: str, threads: str) -> str:
    """Return a machine in words."""
    parts = [processor or "unknown machine", gpu, f"{threads} threads" if threads else ""]
    return ", ".join(part for part in parts if part)


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) else str(value)


def _points(
    m: CellSummary,
    commit: str,
    machine: tuple[str, str, str],
    order: tuple[float, str],
    versions: Mapping[str, str],
    environment: str,
) -> Iterator[tuple[Key, Point, Identity]]:
    """The points of a cell: time, memory, energy, error and share of wrong labels."""
    processor, gpu, threads = machine
    disturbed = m.throttled > 0 or (m.stolen or 0.0) >= MUCH_STOLEN

    def entry(
        metric: Metric,
        kind: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
    ) -> tuple[Key, Point, Identity]:
        cell = m.cell
        return (
            Key(m.engine, cell.size, m.where, metric, machine_name(processor, gpu, threads)),
            Point(
                order, commit, value, low, high, m.side.outcome, versions, environment, disturbed
            ),
            (
                commit,
                machine_name(processor, gpu, ""),
                cell.phase,
                m.engine,
                cell.size,
                cell.batch,
                cell.layer or cell.map,
                kind,
            ),
        )

    if m.ok:
        yield entry(TIME, "time", m.seconds, m.low, m.high)
        if m.memory is not None:
            yield entry(m.memory_metric, "memory", m.memory)
        if m.values.get(ENERGY.key):
            yield entry(ENERGY, "energy", m.values[ENERGY.key])
        if m.error is not None:
            yield entry(m.error_metric, "error", m.error)
        if m.labelling is not None:
            yield entry(WRONG_LABELS, "wrong_labels", 1 - m.labelling.nonzero)
    elif m.side.outcome != "unavailable":
        yield entry(TIME, "time", None)


def _asv_identity(value: AsvValue) -> Identity:
    return (
        value.commit,
        machine_name(value.processor, value.gpu, ""),
        value.phase,
        value.engine,
        value.size,
        value.batch,
        value.state,
        value.kind,
    )


def _of_asv(value: AsvValue, commits: Commits) -> tuple[Key, Point]:
    """The series and the point of a value from asv's database."""
    return (
        Key(
            value.engine,
            value.size,
            value.where,
            value.metric,
            machine_name(value.processor, value.gpu, ""),
        ),
        Point(
            commits.order(value.commit, value.utc), value.commit, value.value, value.low, value.high
        ),
    )


def level_values(points: Sequence[Point], metric: Metric) -> list[float]:
    """Return positive values for change-point detection, offset by the noise to ignore.

    A metric without a unit has an absolute tolerance. Added to the values, it keeps a relative
    error that varies between 1e-7 and 3e-7 from appearing as a threefold increase.
    """
    floor = metric.tolerance if not metric.unit else 1e-12
    return [max(p.value or 0.0, 0.0) + floor for p in finite(points)]


def finite(points: Sequence[Point]) -> list[Point]:
    """Return the points that have a finite value."""
    return [p for p in points if p.value is not None and math.isfinite(p.value)]
