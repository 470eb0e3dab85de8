"""Summaries of cells: the rounds of each cell on each machine, joined to one entry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import TYPE_CHECKING, Any

from harness.results.environment import Environment, environments
from harness.results.labelling import ENTRY, Labelling
from harness.results.store import CELL_COLUMNS
from harness.results.verdict import Side, worst_outcome
from harness.spec.cell import Cell, EventSpec, ModelSpec, Question
from harness.spec.metrics import (
    GRAD_REL_RMSE,
    METRICS,
    NVML_PEAK,
    PEAK_RSS,
    REL_RMSE,
    Metric,
)
from harness.spec.quantiles import median, quartiles

if TYPE_CHECKING:
    import pandas as pd

MANY_OUTLIERS = 0.1
"""Share of outliers among the samples from which a time is remarked on."""

STOPS = ("spread", "samples", "budget")
"""Reasons to stop sampling, from the most to the least precise time."""


@dataclass(frozen=True, slots=True)
class CellSummary:
    """The rounds of one cell on one machine with one set of versions.

    Attributes
    ----------
    name
        Name (hash) of the cell.
    cell
        The measured cell.
    environment
        Machine and versions.
    side
        Samples by round, outcome and reason.
    sites
        Active sites of the batch; None where the worker died before counting them.
    active
        Active sites after the last convolution of a chain; None of other cells.
    stolen
        Largest share over rounds of the processors' time that the host of a virtual machine gave to
        others, 0 to 1; None where it is not counted.
    seconds, low, high
        Median and quartiles of a call over all samples in seconds; None without an ``ok`` round.
    memory, error
        Medians over rounds of ``memory_metric`` in bytes and of ``error_metric``; None where not
        measured. The error of a wrong cell is included.
    values
        Medians over rounds of the metrics of ``OTHER_METRICS`` by their keys.
    outliers, throttled
        Samples that are outliers, and samples taken while the GPU's clock was held down.
    skipped
        Events without a site that were passed over while the batch was drawn.
    stop
        The least precise of the rounds' reasons to stop sampling; empty if none is recorded.
    labelling
        Accuracy of the labels, in the last round that has it; None of other cells than forward
        passes of the UResNet on events with labels.
    whole_process
        Whether the peak of resident memory is that of the process, not of the call.
    """

    name: str
    cell: Cell
    environment: Environment
    side: Side
    sites: int | None
    seconds: float | None
    low: float | None
    high: float | None
    memory: float | None
    error: float | None
    active: int | None = None
    stolen: float | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    outliers: int = 0
    throttled: int = 0
    skipped: int = 0
    stop: str = ""
    whole_process: bool = False
    labelling: Labelling | None = None

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
        return self.cell.engine

    @property
    def question(self) -> Question:
        """The question on which engines are compared."""
        return self.cell.question

    @property
    def where(self) -> str:
        """The question in words."""
        return self.cell.question.description

    @property
    def extent(self) -> str:
        """How many sites, in words; empty where they were not counted."""
        if self.sites is None:
            return ""
        after = f", {self.active:,} after the last convolution" if self.active is not None else ""
        return f"{self.sites:,} sites{after}"

    @property
    def note(self) -> str:
        """Why there is no time, or else what a reader should know about the time."""
        return "; ".join(filter(None, (self.side.reason, self.side.remark, self.remark)))

    @property
    def remark(self) -> str:
        """Remarks on memory and events that a reader needs; usually empty."""
        skipped = f"{self.skipped} events without a site were passed over" if self.skipped else ""
        memory = "memory is the peak of the whole process" if self.whole_process else ""
        return "; ".join(filter(None, (skipped, memory)))

    @property
    def memory_metric(self) -> Metric:
        """The metric that ``memory`` is."""
        return _memory_metric(self.cell)

    @property
    def error_metric(self) -> Metric:
        """The metric that ``error`` is: gradients reveal more than logits where there are any."""
        return _error_metric(self.cell)


def _memory_metric(cell: Cell) -> Metric:
    return NVML_PEAK if cell.device == "cuda" else PEAK_RSS


def _error_metric(cell: Cell) -> Metric:
    return GRAD_REL_RMSE if cell.phase == "step" else REL_RMSE


MAIN = ("host_seconds", PEAK_RSS.key, NVML_PEAK.key, REL_RMSE.key, GRAD_REL_RMSE.key)

OTHER_METRICS = tuple(metric for metric in METRICS if metric.key not in MAIN)
"""Metrics besides time, memory and error, for spreadsheets and programs."""

COLUMNS = (
    *CELL_COLUMNS,
    *("cell.name", "run", "round", "outcome", "reason", "sites", "host_seconds", "turn_samples"),
    *("active_sites", "conditions.stolen", "outliers", "throttled", "skipped_empty", "stop"),
    *("memory.rss_peak_reset", "conditions.before.throttle", "conditions.after.throttle"),
    *(key for metric in METRICS for key in (metric.key, metric.baseline) if key),
)
"""The columns of a table of records that a summary needs."""

Columns = Mapping[str, Sequence[Any]]


def summarize(frame: pd.DataFrame) -> list[CellSummary]:
    """Summarize a table of records, as ``harness.results.store.read`` returns it, by cell.

    Values of two machines, or of two sets of versions, are never joined: a cell has a summary for
    each. The rounds of a cell are its records, told apart by run and round number. The last record
    of a round counts, because measuring again replaces.

    Returns
    -------
    list[CellSummary]
        By environment, then in the order of first appearance.
    """
    if frame.empty:
        return []
    accuracies = [name for name in frame.columns if str(name).startswith(ENTRY)]
    names = dict.fromkeys(name for name in (*COLUMNS, *accuracies) if name in frame.columns)
    columns = {name: frame[name].tolist() for name in names}
    found, places = environments(frame)
    rows: dict[tuple[int, str], dict[tuple[str, int], int]] = {}
    for i, (name, run, number) in enumerate(_rounds(columns, len(frame))):
        rows.setdefault((places[i], name), {})[run, number] = i
    return [
        _summarize_cell(name, found[place], columns, rounds)
        for (place, name), rounds in sorted(rows.items(), key=lambda item: item[0][0])
    ]


def _rounds(columns: Columns, count: int) -> Iterator[tuple[str, str, int]]:
    """Name the cell, the run and the round of every record; without a number, by appearance."""
    numbers = columns.get("round", [None] * count)
    seen: dict[tuple[str, str], int] = {}
    for name, run, number in zip(columns["cell.name"], columns["run"], numbers, strict=True):
        appearance = seen.get((name, run), 0)
        seen[name, run] = appearance + 1
        yield name, run, appearance if _absent(number) else int(number)


def _cell(columns: Columns, row: int) -> Cell:
    """Rebuild the cell of a row."""
    at = {key.removeprefix("cell."): columns[key][row] for key in CELL_COLUMNS}
    model = {entry.name: at.pop(f"model.{entry.name}") for entry in fields(ModelSpec)}
    events = {name: at.pop(f"events.{name}") for name in ("set", "sha256", "seed", "count")}
    at["options"] = json.loads(at["options"])
    return Cell(**at, model=ModelSpec(**model), events=EventSpec(**events))


def _summarize_cell(
    name: str, environment: Environment, columns: Columns, rows: Mapping[tuple[str, int], int]
) -> CellSummary:
    cell = _cell(columns, next(iter(rows.values())))
    outcome, reason = _outcome(columns, list(rows.values()))
    timed = {key: i for key, i in rows.items() if columns["outcome"][i] == "ok"}
    samples: dict[Any, list[float]] = {key: columns["host_seconds"][i] for key, i in timed.items()}
    if cell.map == "first":  # every sample is the first call of a process of its own: a round
        samples = {(*key, k): [s] for key, found in samples.items() for k, s in enumerate(found)}
    turns = {
        key: columns["turn_samples"][i]
        for key, i in (timed if "turn_samples" in columns else {}).items()
        if isinstance(columns["turn_samples"][i], list)
    }
    together = list(chain.from_iterable(samples.values()))
    low, middle, high = quartiles(together) if together else (None, None, None)
    sites = _values(columns, "sites", rows.values())
    active = _values(columns, "active_sites", timed.values())
    outliers = _count(columns, "outliers", timed.values())
    throttled = _count(columns, "throttled", timed.values())
    stops = [columns["stop"][i] for i in (timed.values() if "stop" in columns else ())]
    return CellSummary(
        name=name,
        cell=cell,
        environment=environment,
        side=Side(samples, outcome, reason, turns, _remark(outliers, throttled, len(together))),
        sites=int(sites[0]) if sites else None,
        seconds=middle,
        low=low,
        high=high,
        memory=_typical(columns, _memory_metric(cell), timed.values()),
        error=_typical(columns, _error_metric(cell), rows.values()),
        active=int(active[0]) if active else None,
        stolen=max(_values(columns, "conditions.stolen", timed.values()), default=None),
        values={m.key: _typical(columns, m, timed.values()) for m in OTHER_METRICS},
        outliers=outliers,
        throttled=throttled,
        skipped=int(max(_values(columns, "skipped_empty", rows.values()), default=0)),
        stop=max((s for s in stops if s in STOPS), key=STOPS.index, default=""),
        labelling=_labelling(columns, timed.values()),
        whole_process=cell.device == "cpu"
        and 0.0 in _values(columns, "memory.rss_peak_reset", timed.values()),
    )


def _outcome(columns: Columns, rows: Sequence[int]) -> tuple[str, str]:
    """Return the worst outcome of some rounds, with its reason."""
    outcomes = [columns["outcome"][i] for i in rows]
    outcome = worst_outcome(outcomes)
    if outcome == "ok":
        return outcome, ""
    reasons = columns.get("reason", [None] * len(columns["outcome"]))
    reason = next(
        (
            str(reasons[i])
            for i, o in zip(rows, outcomes, strict=True)
            if o == outcome and not _absent(reasons[i])
        ),
        "",
    )
    if set(outcomes) != {outcome}:
        reason = f"{reason} ({outcomes.count(outcome)} of {len(outcomes)} rounds)".lstrip()
    return outcome, reason


def _labelling(columns: Columns, rows: Iterable[int]) -> Labelling | None:
    """Return the accuracy in the last record that has one."""
    found = (Labelling.of(columns, i) for i in reversed(list(rows)))
    return next((labelling for labelling in found if labelling is not None), None)


def _remark(outliers: int, throttled: int, samples: int) -> str:
    """Return what makes the samples doubtful, in words; empty for nothing."""
    parts = []
    if throttled:
        parts.append(f"{throttled} of {samples} samples were taken with the GPU's clock held down")
    if samples and outliers >= MANY_OUTLIERS * samples:
        parts.append(f"{outliers} of {samples} samples are outliers")
    return "; ".join(parts)


def _count(columns: Columns, key: str, rows: Iterable[int]) -> int:
    """Count the entries of a column of lists."""
    column = columns.get(key, ())
    return sum(len(column[i]) for i in rows if column and isinstance(column[i], list))


def _typical(columns: Columns, metric: Metric, rows: Iterable[int]) -> float | None:
    """Median of a metric over some records, its baseline subtracted."""
    rows = list(rows)
    if metric.samples:
        column = columns.get(metric.key, ())
        samples = [s for i in rows if column and isinstance(column[i], list) for s in column[i]]
        return median(samples) if samples else None
    values = _values(columns, metric.key, rows)
    if not values:
        return None
    if metric.baseline:
        baselines = _values(columns, metric.baseline, rows)
        return median(values) - (median(baselines) if baselines else 0.0)
    return median(values)


def _values(columns: Columns, key: str, rows: Iterable[int]) -> list[float]:
    column = columns.get(key)
    if column is None:
        return []
    return [float(column[i]) for i in rows if not _absent(column[i])]


def _absent(value: Any) -> bool:
    """Whether a table's entry is None or NaN."""
    return value is None or value != value
