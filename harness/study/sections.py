"""What the study's page is made of: sections of sentences, tables, figures and events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.report.style import Looks
from harness.study.figures import Figure, publish
from harness.study.results import Results

SIZES = (192, 512, 768)


@dataclass(frozen=True)
class Table:
    """A table of the page; its numbers lie beside the page as CSV."""

    name: str
    title: str
    sentence: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Turned:
    """An event of the page that can be turned."""

    sentence: str
    element: str


@dataclass
class Section:
    """One part of the page: its sentences, then tables, figures and events in order."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)
    items: list[Table | Figure | Turned] = field(default_factory=list)


class Writer:
    """Collects figures and tables of one page into its folder."""

    def __init__(self, found: Results) -> None:
        self.found = found
        self.folder = found.study.out / "figures"
        self.looks = Looks([*found.study.engines.sparse, *found.study.engines.dense])
        self.sparse = found.study.backend

    def table(
        self,
        name: str,
        title: str,
        sentence: str,
        frame: pd.DataFrame,
        formats: Mapping[str, Callable[[Any], str]] | None = None,
    ) -> Table:
        """Write a table as CSV and format it for the page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.folder / f"{name}.csv", index=False)
        formats = formats or {}
        rows = [
            [
                formats.get(str(column), plain)(value)
                for column, value in zip(frame.columns, row, strict=True)
            ]
            for row in frame.itertuples(index=False)
        ]
        return Table(name, title, sentence, [str(c) for c in frame.columns], rows)

    def figure(
        self,
        name: str,
        title: str,
        sentence: str,
        frame: pd.DataFrame,
        draw: Callable[[Any], None],
        **options: Any,
    ) -> Figure:
        """Draw a figure."""
        return publish(self.folder, name, title, sentence, frame, draw, **options)


def plain(value: Any) -> str:
    """Write a value of a table: an en dash for what is not known, numbers to three digits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def share(value: float) -> str:
    """Write a fraction with the four digits in which accuracies differ."""
    return "–" if value is None or value != value else f"{value:.4f}"


def times(value: float | None) -> str:
    """Write a factor."""
    if value is None or value != value:
        return "–"
    return f"{value:,.0f}×" if value >= 1000 else f"{value:.3g}×"


ACCURACIES = dict.fromkeys(("nonzero accuracy", "spread over events", "error of the mean"), share)
"""How the columns of ``results.accuracy_table`` are written."""
