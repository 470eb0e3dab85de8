"""Where records come from: machine, versions, dates and the commands that measure them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.spec.metrics import format_value

if TYPE_CHECKING:
    import pandas as pd

FACTS = (
    ("processor", "machine.processor"),
    ("cores", "machine.cores"),
    ("threads used", "machine.threads"),
    ("memory", "machine.memory_bytes"),
    ("GPU", "machine.gpu"),
    ("driver", "machine.driver"),
    ("GPU identifier", "machine.gpu_uuid"),
    ("GPU memory read by", "memory.nvml_meaning"),
    ("without NVML", "machine.nvml"),
    ("C allocator", "allocator"),
    ("system", "machine.system"),
    ("host", "machine.host"),
)


CONDITIONS = ("conditions.before.", "conditions.after.")
RANGES = (
    ("memory limit of a worker", ("memory.limit_bytes",), "bytes"),
    ("interval of NVML readings", ("memory.nvml_interval_s",), "s"),
    ("reading the events of a batch", ("load_seconds",), "s"),
    ("warm-up, with compilation and tuning", ("tuning_seconds",), "s"),
    ("load", tuple(f"{moment}load" for moment in CONDITIONS), ""),
    ("GPU clock", tuple(f"{moment}sm_clock_mhz" for moment in CONDITIONS), "MHz"),
    ("GPU temperature", tuple(f"{moment}temperature_c" for moment in CONDITIONS), "°C"),
    ("GPU power limit", tuple(f"{moment}power_limit_w" for moment in CONDITIONS), "W"),
)
"""Numbers that vary from record to record, with their columns and unit."""


def facts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return time, commit, machine and versions of records, as pairs of name and value."""
    found = [
        ("measured", _span(_distinct(frame, "utc"))),
        ("commit", ", ".join(c[:10] for c in _distinct(frame, "commit")) + _dirt(frame)),
    ]
    for name, column in FACTS:
        values = _distinct(frame, column)
        if column.endswith("_bytes"):
            values = [format_value(float(v), "bytes") for v in values]
        if values:
            found.append((name, ", ".join(values)))
    found += [(name, _range(frame, columns, unit)) for name, columns, unit in RANGES]
    arithmetic = [c for c in frame.columns if str(c).startswith("precision_readback.")]
    listed = [f"{c.partition('.')[2]} {' / '.join(_distinct(frame, c))}" for c in arithmetic]
    found.append(("arithmetic, as read back", ", ".join(v for v in listed if not v.endswith(" "))))
    versions = [c for c in frame.columns if str(c).startswith("versions.")]
    listed = [f"{c.removeprefix('versions.')} {' / '.join(_distinct(frame, c))}" for c in versions]
    found.append(("versions", ", ".join(sorted(v for v in listed if not v.endswith(" ")))))
    return [(name, value) for name, value in found if value]


def _range(frame: pd.DataFrame, columns: Sequence[str], unit: str) -> str:
    """Write the least and the largest value of some columns; empty where there is none."""
    values = [
        float(value)
        for column in columns
        if column in frame.columns
        for value in frame[column].tolist()
        if value is not None and value == value
    ]
    ends = (
        list(dict.fromkeys(format_value(v, unit) for v in (min(values), max(values))))
        if values
        else []
    )
    return " to ".join(ends)


def _span(times: Sequence[str]) -> str:
    if not times:
        return ""
    first, last = min(times)[:16].replace("T", " "), max(times)[:16].replace("T", " ")
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _dirt(frame: pd.DataFrame) -> str:
    return " with changes that are not committed" if "True" in _distinct(frame, "dirty") else ""


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    """The values of a column as text, in order of appearance, without those that are absent."""
    if column not in frame.columns:
        return []
    seen: dict[str, None] = {}
    for value in frame[column]:
        if value is None or value != value or value == "":
            continue
        plain = int(value) if isinstance(value, float) and value.is_integer() else value
        seen[str(plain)] = None
    return list(seen)


def recipe(frame: pd.DataFrame) -> list[str]:
    """The commands that measure the same again."""
    lines = []
    commits = _distinct(frame, "commit")
    if len(commits) == 1:
        lines.append(f"git checkout {commits[0]}")
    for suite in _distinct(frame, "cell.suite"):
        own = frame[frame["cell.suite"] == suite]
        options = [
            *(f"--backend {b}" for b in _distinct(own, "cell.backend")),
            *(f"--size {s}" for s in sorted(_distinct(own, "cell.size"), key=int)),
            *(f"--batch {n}" for n in sorted(_distinct(own, "cell.batch"), key=int)),
            *(f"--device {d}" for d in _distinct(own, "cell.device")),
            *(f"--precision {p}" for p in _distinct(own, "cell.precision")),
        ]
        rounds = len(_distinct(own, "round"))
        if rounds > 1:
            options.append(f"--repeats {rounds}")
        lines.append(" ".join([f"python -m harness run {suite}", *options]))
    return lines
