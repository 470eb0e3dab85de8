"""Tables of rows as CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """How a comparison is printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


def write_rows(rows: Sequence[Mapping[str, Any]], form: Format) -> str:
    """Write rows as CSV, JSON or a Markdown table; rows may lack columns that others have."""
    if form is Format.json:
        return json.dumps(list(rows), indent=1)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if form is Format.csv:
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip("\n")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_plain(row.get(n)) for n in names) + " |" for row in rows]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def times(ratio: float | None) -> str:
    """Format a ratio, as in ``22×`` or ``3,960×``; an en dash where there is none."""
    if ratio is None or not math.isfinite(ratio):
        return "–"
    return f"{ratio:,.0f}×" if ratio >= 1000 else f"{ratio:.3g}×"


def speed(ratio: float | None) -> str:
    """Format how many times faster or slower something is: ``5.9× faster``, ``22× slower``."""
    if ratio is None or not ratio > 0:
        return "–"
    if times(ratio) == times(1):
        return times(1)
    return f"{times(ratio)} faster" if ratio > 1 else f"{times(1 / ratio)} slower"
