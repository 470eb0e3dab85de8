"""Comparisons as rows: for spreadsheets, for programs and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from harness.compare.comparison import Change, Standing
from harness.results.labelling import ENTRY
from harness.results.summary import CellSummary
from harness.results.verdict import percent
from harness.spec.metrics import format_value


def standing_rows(ranked: Iterable[Standing]) -> list[dict[str, Any]]:
    """Flatten standings for a spreadsheet or a program; seconds and bytes, None where unknown."""
    return [
        {
            "engine": s.measured.engine,
            **_cell_columns(s.measured),
            "outcome": s.measured.side.outcome,
            "reason": s.measured.side.reason,
            "sites": s.measured.sites,
            "median_s": s.measured.seconds,
            "q25_s": s.measured.low,
            "q75_s": s.measured.high,
            "rounds": len(s.measured.side.rounds),
            "samples": s.measured.side.samples,
            "memory_bytes": s.measured.memory,
            "error": s.measured.error,
            "weights": s.measured.cell.weights,
            **_accuracy_columns(s.measured),
            "over_dense": s.over_dense,
            "over_best_other": s.over_best,
            "machine": s.measured.environment.label,
            "commit": s.measured.environment.facts.get("commit"),
            "stop": s.measured.stop,
            "outliers": s.measured.outliers,
            "throttled": s.measured.throttled,
            "skipped_events": s.measured.skipped,
            "note": s.measured.note,
            **{
                key.rpartition(".")[2]: value
                for key, value in s.measured.values.items()
                if not key.startswith(ENTRY)
            },
        }
        for s in ranked
    ]


def change_rows(found: Iterable[Change]) -> list[dict[str, Any]]:
    """Flatten changes for a spreadsheet or a program; None where there is no number."""
    return [
        {
            "verdict": str(c.judgement.verdict),
            "metric": c.metric.name,
            "engine": c.measured.engine,
            **_cell_columns(c.measured),
            "before": c.before,
            "after": c.after,
            "ratio": _finite(c.judgement.ratio),
            "low": _finite(c.judgement.low),
            "high": _finite(c.judgement.high),
            "p": _finite(c.judgement.p),
            "reason": c.judgement.reason,
        }
        for c in found
    ]


def change_words(found: Iterable[Change]) -> list[dict[str, str]]:
    """Return changes in words, for people."""
    return [
        {
            "verdict": str(c.judgement.verdict),
            "metric": c.metric.name,
            "engine": c.measured.engine,
            "where": c.measured.where,
            "before": format_value(c.before, c.metric.unit),
            "after": format_value(c.after, c.metric.unit),
            "change": percent(c.judgement.ratio) if math.isfinite(c.judgement.ratio) else "–",
            "why": "two machines" if c.two_machines else c.judgement.reason,
        }
        for c in found
    ]


def _cell_columns(measured: CellSummary) -> dict[str, Any]:
    keys = ("size", "dim", "batch", "layer", "phase", "map", "precision", "device")
    return {"cell": measured.name} | {key: getattr(measured.cell, key) for key in keys}


def _accuracy_columns(measured: CellSummary) -> dict[str, Any]:
    found = measured.labelling
    if found is None:
        return {"accuracy": None, "accuracy_error": None, "flips": None}
    return {
        "accuracy": found.nonzero,
        "accuracy_error": found.standard_error,
        "flips": found.flips,
        "labelled_events": len(found.shares),
        "michel_efficiency": found.michel_efficiency,
        "michel_purity": found.michel_purity,
        **{f"accuracy_{name}": value for name, value in found.class_accuracy.items()},
        **{f"purity_{name}": value for name, value in found.class_purity.items()},
    }


def accuracy_text(measured: CellSummary) -> str:
    """The accuracy of a trained network's labels and how many differ from float64; else empty."""
    found = measured.labelling
    if found is None:
        return ""
    flips = f" ({found.flips} differ)" if found.flips else ""
    events = len(found.labelled)
    fewer = f" of {events} events" if events < measured.cell.events.count else ""
    return f"{found.text}{fewer}{flips}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def spread(measured: CellSummary) -> str:
    """Half the distance of the quartiles as a share of the median."""
    if measured.seconds is None or measured.low is None or measured.high is None:
        return ""
    return f"± {50 * (measured.high - measured.low) / measured.seconds:.1f} %"
