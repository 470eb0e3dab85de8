"""Writes the page of a comparison: one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparison import (
    Change,
    Finding,
    Standing,
    common_drift,
    disturbance,
    failures,
    finding,
    tally,
)
from harness.errors import BadInput
from harness.measured import Measured
from harness.metrics import format_value
from harness.report.event import event_of
from harness.report.figures import (
    against_level,
    against_sites,
    against_size,
    call_of,
    change_figure,
    memory_of,
    time_of,
)
from harness.report.style import Looks
from harness.rows import Format, change_rows, spread, standing_rows, times, write_rows
from harness.verdict import Verdict, percent

if TYPE_CHECKING:
    import pandas as pd

ROWS_SHOWN = 400
"""Beyond these a table is not read but searched, which its CSV file is for."""

SHAPES = {
    "o": "M6 1a5 5 0 1 0 .01 0z",
    "s": "M1 1h10v10H1z",
    "^": "M6 1l5 10H1z",
    "D": "M6 0l6 6-6 6-6-6z",
    "v": "M1 1h10L6 11z",
    "P": "M4 0h4v4h4v4H8v4H4V8H0V4h4z",
    "X": "M3 0l3 3 3-3 3 3-3 3 3 3-3 3-3-3-3 3-3-3 3-3-3-3z",
    "*": "M6 0l2 4 4 .5-3 3 .8 4.5L6 10l-3.800 2 .8-4.500-3-3L4 4z",
}
"""The markers of the figures as paths in a box of 12 by 12, for legends and tables."""


def write_page(
    folder: Path,
    frame: pd.DataFrame,
    cells: Mapping[str, Measured],
    ranked: Sequence[Standing],
    found: Sequence[Change],
    frame_before: pd.DataFrame | None = None,
) -> Path:
    """Write ``index.html`` into a folder.

    Parameters
    ----------
    folder
        Made if it does not exist.
    frame
        Records of the run (of the run after, where there are two).
    cells, ranked
        The same records pooled, and the engines' standings.
    found
        What changed since the run before; empty for a single run.
    frame_before
        Records of the run before, or None.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    text = render(frame, cells, ranked, found, frame_before)
    return save(text, folder / "index.html", "--report")


def save(text: str, path: Path, option: str) -> Path:
    """Write a page, making its folder if needed, and return its path.

    Parameters
    ----------
    text
        The page as HTML.
    path
        The file.
    option
        What to give another of if it cannot be written, in words.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another {option}") from None
    return path


def render(
    frame: pd.DataFrame,
    cells: Mapping[str, Measured],
    ranked: Sequence[Standing],
    found: Sequence[Change],
    frame_before: pd.DataFrame | None = None,
) -> str:
    """Return the page as HTML; the parameters are `write_page`'s."""
    from plotly.offline import get_plotlyjs

    measured = list(cells.values())
    looks = Looks(m.engine for m in measured)
    shown = [s for s in ranked if s.measured.tried]
    timed = [m for m in measured if m.ok]
    said = finding(cells)
    event = event_of(max(measured, key=_for_show))
    rows = change_rows(found) if found else standing_rows(ranked)
    moved = [c for c in found if c.judgement.verdict is not Verdict.SAME]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            looks=looks,
            legend=[e for e in looks.engines if any(m.engine == e and m.tried for m in measured)],
            shapes=SHAPES,
            said=said,
            glance=glance(said),
            two_runs=frame_before is not None,
            changes=moved[:ROWS_SHOWN],
            change_count=len(moved),
            tally=tally(found),
            drift=common_drift(found),
            disturbance=disturbance(measured),
            change_figure=change_figure(found),
            ranked=shown[:ROWS_SHOWN],
            ranked_count=len(shown),
            failures=failures(measured),
            figures=figures(measured, looks) if timed else [],
            event=event,
            facts=facts(frame),
            before=facts(frame_before) if frame_before is not None else [],
            recipe=recipe(frame),
            csv=base64.b64encode(write_rows(rows, Format.csv).encode()).decode(),
            plotly=get_plotlyjs() if event else "",
        )
    )


def _for_show(m: Measured) -> tuple[bool, int, int]:
    """Prefer the cell with the events that are best to look at: large, but not too fine to see."""
    return m.cell["size"] <= 512, m.cell["size"], m.cell["batch"]


def environment() -> Any:
    """Templates of this package, escaping by default, with the filters that they share."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "seconds": lambda value: format_value(value, "s"),
        "bytes": lambda value: format_value(value, "bytes"),
        "times": times,
        "spread": spread,
        "percent": percent,
        "number": lambda value: f"{value:,}".replace(",", "\u202f"),
        "value": format_value,
    }
    return made


def glance(said: Finding) -> list[dict[str, Any]]:
    """Time and memory of the quoted question as bars, each a share of the longest."""
    ok = [m for m in said.quoted if m.ok]
    longest = max((m.seconds or 0.0 for m in ok), default=0.0)
    largest = max((m.memory or 0.0 for m in ok), default=0.0)
    return [
        {
            "measured": m,
            "time": 100 * (m.seconds or 0.0) / longest if m.ok and longest else None,
            "memory": 100 * max(m.memory or 0.0, 0.0) / largest if m.ok and largest else None,
        }
        for m in said.quoted
    ]


def figures(measured: Sequence[Measured], looks: Looks) -> list[tuple[str, str, list[str]]]:
    """The figures by section: heading, what to look for, and the panels."""
    sections = [
        (
            "Time against image size",
            "Median time an event; bars reach from the lower to the upper quartile of all samples. "
            "A cross on the upper edge is a cell without a time.",
            against_size(measured, looks, time_of, "s", "time an event"),
        ),
        (
            "Memory against image size",
            "Peak memory of a call above what the process used before it.",
            against_size(measured, looks, memory_of, "bytes", "peak memory"),
        ),
        (
            "Against the number of sites",
            "Sparse engines compute on active sites only, so this is the axis that their time and "
            "memory follow; each point is a batch, with its quartiles.",
            against_sites(measured, looks, call_of, "s", "time a call")
            + against_sites(measured, looks, memory_of, "bytes", "peak memory"),
        ),
    ]
    sections.append(
        (
            "Single convolutions",
            "Median time of one convolution, of its gradients and of the building of its map, with "
            "the sites and channels that each level of the network has.",
            against_level(measured, looks, call_of, "s", "time a call"),
        )
    )
    return [section for section in sections if section[2]]


FACTS = (
    ("processor", "machine.processor"),
    ("cores", "machine.cores"),
    ("threads used", "machine.threads"),
    ("memory", "machine.memory_bytes"),
    ("GPU", "machine.gpu"),
    ("driver", "machine.driver"),
    ("system", "machine.system"),
    ("host", "machine.host"),
)


def facts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """What was measured, when and on what, as pairs of name and value."""
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
    versions = [c for c in frame.columns if str(c).startswith("versions.")]
    listed = [f"{c.removeprefix('versions.')} {' / '.join(_distinct(frame, c))}" for c in versions]
    found.append(("versions", ", ".join(sorted(v for v in listed if not v.endswith(" ")))))
    return [(name, value) for name, value in found if value]


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
