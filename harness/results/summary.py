"""Records pooled to one entry per cell: what a run knows about each thing that it measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.results.store import CELL_COLUMNS
from harness.results.verdict import Side, median, worst_outcome
from harness.spec.cell import EventSpec, ModelSpec
from harness.spec.metrics import GRAD_REL_RMSE, NVML_PEAK, PEAK_RSS, REL_RMSE, Metric

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Measured:
    """A cell with its rounds pooled.

    Attributes
    ----------
    name
        The cell's name (its hash).
    cell
        Its columns by the names in `store.CELL_COLUMNS`, without the leading ``cell.``.
    side
        Samples by round, outcome and reason.
    sites
        Active sites of the batch, or None where the worker died before counting.
    active
        Active sites after the convolutions of a stack; None of a UResNet.
    stolen
        Largest part over rounds of the processors' time that the machine's host gave to others
        meanwhile, 0 to 1; None where nobody counts it.
    seconds, low, high
        Median and quartiles of a call over all samples in seconds; None without an ``ok`` round.
    memory, error
        Medians over rounds of the device's memory metric in bytes and of the phase's error; None
        where not measured. The error of a wrong cell is kept: it says how wrong.
    """

    name: str
    cell: Mapping[str, Any]
    side: Side
    sites: int | None
    seconds: float | None
    low: float | None
    high: float | None
    memory: float | None
    error: float | None
    active: int | None = None
    stolen: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every round gave a time that counts."""
        return self.side.outcome == "ok"

    @property
    def tried(self) -> bool:
        """Whether the engine could run here at all."""
        return self.side.outcome != "unavailable"

    @property
    def engine(self) -> str:
        """The engine with its options: what competes with others on the same question."""
        options = json.loads(self.cell["options"])
        return " ".join([self.cell["backend"], *(f"{k}={v}" for k, v in sorted(options.items()))])

    @property
    def question(self) -> tuple[Any, ...]:
        """What engines compete on: all of the cell but suite and engine."""
        return tuple(value for key, value in self.cell.items() if key not in ENGINE_KEYS)

    @property
    def where(self) -> str:
        """The question in words."""
        c = self.cell
        spec = {name: c[f"model.{name}"] for name in ("filters", "depth", "reps", "classes")}
        network = "" if spec == asdict(ModelSpec()) else f", network {tuple(spec.values())}"
        events = "" if c["events.set"] == SAMPLE else f", {c['events.set']}"
        layer = f"{c['layer']}, " if c["layer"] else ""
        return (
            f"{c['size']} px{', 2D' if c['dim'] == 2 else ''}, batch {c['batch']}, {layer}"
            f"{c['phase']}, {c['map']} map, {c['precision']} on {c['device']}{network}{events}"
        )

    @property
    def extent(self) -> str:
        """How many sites, in words; empty where nobody counted them."""
        if self.sites is None:
            return ""
        after = f", {self.active:,} after the last convolution" if self.active is not None else ""
        return f"{self.sites:,} sites{after}"

    @property
    def memory_metric(self) -> Metric:
        """The metric that `memory` is."""
        return NVML_PEAK if self.cell["device"] == "cuda" else PEAK_RSS

    @property
    def error_metric(self) -> Metric:
        """The metric that `error` is: gradients tell more than logits where there are any."""
        return GRAD_REL_RMSE if self.cell["phase"] == "step" else REL_RMSE


SAMPLE = EventSpec().set

ENGINE_KEYS = ("suite", "backend", "options")

COLUMNS = (
    *CELL_COLUMNS,
    *("cell.name", "run", "round", "outcome", "reason", "sites", "host_seconds", "turn_samples"),
    *("active_sites", "conditions.stolen"),
    *(key for m in (PEAK_RSS, NVML_PEAK) for key in (m.key, m.baseline)),
    *(REL_RMSE.key, GRAD_REL_RMSE.key),
)
"""The columns of a table of records that pooling reads."""


def pool(frame: pd.DataFrame) -> dict[str, Measured]:
    """Pool a table of records, as `harness.results.store.read` gives it, by cell.

    A cell's rounds are its records, told apart by run and round number. The last record of a round
    counts: that is what measuring it again means.

    Returns
    -------
    dict[str, Measured]
        By the cell's name, in the order of first appearance.
    """
    if frame.empty:
        return {}
    columns = {name: frame[name].tolist() for name in COLUMNS if name in frame.columns}
    rows: dict[str, dict[tuple[str, int], int]] = {}
    for i, (name, run, number) in enumerate(_rounds(columns, len(frame))):
        rows.setdefault(name, {})[run, number] = i
    return {name: _pool_cell(name, columns, found) for name, found in rows.items()}


def _rounds(columns: Mapping[str, Sequence[Any]], count: int) -> Iterator[tuple[str, str, int]]:
    """Name the cell, the run and the round of every record; without a number, by appearance."""
    numbers = columns.get("round", [None] * count)
    seen: dict[tuple[str, str], int] = {}
    for name, run, number in zip(columns["cell.name"], columns["run"], numbers, strict=True):
        appearance = seen.get((name, run), 0)
        seen[name, run] = appearance + 1
        yield name, run, appearance if _absent(number) else int(number)


def _pool_cell(
    name: str, columns: Mapping[str, Sequence[Any]], rows: Mapping[tuple[str, int], int]
) -> Measured:
    first = next(iter(rows.values()))
    cell = {key.removeprefix("cell."): columns[key][first] for key in CELL_COLUMNS}
    outcomes = [columns["outcome"][i] for i in rows.values()]
    outcome = worst_outcome(outcomes)
    reasons = columns.get("reason")
    reason = ""
    if outcome != "ok" and reasons is not None:
        reason = next(
            (
                str(reasons[i])
                for i, o in zip(rows.values(), outcomes, strict=True)
                if o == outcome and not _absent(reasons[i])
            ),
            "",
        )
    if outcome != "ok" and len(outcomes) > 1 and set(outcomes) != {outcome}:
        reason = f"{reason} ({outcomes.count(outcome)} of {len(outcomes)} rounds)".lstrip()
    timed = {key: i for key, i in rows.items() if columns["outcome"][i] == "ok"}
    samples: dict[Any, list[float]] = {key: columns["host_seconds"][i] for key, i in timed.items()}
    if cell["map"] == "first":  # every sample is the first call of a process of its own: a round
        samples = {(*key, k): [s] for key, found in samples.items() for k, s in enumerate(found)}
    turns = {
        key: columns["turn_samples"][i]
        for key, i in (timed if "turn_samples" in columns else {}).items()
        if isinstance(columns["turn_samples"][i], list)
    }
    low, middle, high = quartiles(list(chain.from_iterable(samples.values())))
    device_metric = NVML_PEAK if cell["device"] == "cuda" else PEAK_RSS
    error_metric = GRAD_REL_RMSE if cell["phase"] == "step" else REL_RMSE
    sites = _values(columns, "sites", rows.values())
    active = _values(columns, "active_sites", timed.values())
    return Measured(
        name=name,
        cell=cell,
        side=Side(samples, outcome, reason, turns),
        sites=int(sites[0]) if sites else None,
        seconds=middle,
        low=low,
        high=high,
        memory=_typical(columns, device_metric, timed.values()),
        error=_typical(columns, error_metric, rows.values()),
        active=int(active[0]) if active else None,
        stolen=max(_values(columns, "conditions.stolen", timed.values()), default=None),
    )


def quartiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Lower quartile, median and upper quartile by linear interpolation; None of none."""
    if not values:
        return None, None, None
    low, middle, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def _typical(columns: Mapping[str, Sequence[Any]], metric: Metric, rows: Any) -> float | None:
    """Median of a metric over some records, its baseline subtracted."""
    rows = list(rows)
    values = _values(columns, metric.key, rows)
    if not values:
        return None
    if metric.baseline:
        baselines = _values(columns, metric.baseline, rows)
        return median(values) - (median(baselines) if baselines else 0.0)
    return median(values)


def _values(columns: Mapping[str, Sequence[Any]], key: str, rows: Any) -> list[float]:
    column = columns.get(key)
    if column is None:
        return []
    return [float(column[i]) for i in rows if not _absent(column[i])]


def _absent(value: Any) -> bool:
    """Whether a table's entry is None or NaN."""
    return value is None or value != value
