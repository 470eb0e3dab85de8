"""Elements of the page: sections with sentences, tables, figures and rotatable events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from harness.errors import BadInput
from harness.report.style import SETTINGS, Looks, svg
from harness.spec.metrics import format_value
from harness.study.results import Results

SIZES = (192, 512, 768)

# Figures on the page follow its theme; PNG files are for print.
_PRINT_SETTINGS: dict[Any, Any] = SETTINGS | {
    "text.color": "#1b1f24",
    "axes.labelcolor": "#1b1f24",
    "axes.edgecolor": "#b9c0c8",
    "grid.color": "#e3e6ea",
    "xtick.color": "#b9c0c8",
    "ytick.color": "#b9c0c8",
    "xtick.labelcolor": "#1b1f24",
    "ytick.labelcolor": "#1b1f24",
    "figure.facecolor": "white",
}

_UNITS = ("s", "bytes", "J")

HALF, WIDE, FULL = (5.4, 3.4), (7.6, 3.4), (10.8, 3.6)
"""Sizes in inches: one of two figures beside each other, a single figure, and two panels."""

Draw = Callable[[Any], None]
"""Draws into axes, or into a list of axes if there are several panels."""


@dataclass(frozen=True)
class Figure:
    """A figure of the page, with its numbers in a CSV file.

    Attributes
    ----------
    name : str
        Stem of its PNG and CSV files.
    title : str
        Heading.
    sentence : str
        Result on this machine.
    images : tuple of str
        SVG elements, one per panel.
    wide : bool
        Whether the figure has the width of the page.
    """

    name: str
    title: str
    sentence: str
    images: tuple[str, ...]
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page, with its numbers in a CSV file."""

    name: str
    title: str
    sentence: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class RotatableEvent:
    """A three-dimensional event of the page."""

    sentence: str
    element: str


@dataclass
class Section:
    """A part of the page: sentences, then tables, figures and events in order."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)
    items: list[Table | Figure | RotatableEvent] = field(default_factory=list)


class PageWriter:
    """Writes the figures and tables of a page into the folder of the study.

    Parameters
    ----------
    found : Results
        Contents of the folder.
    """

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
        """Write a table as CSV, and return it formatted for the page.

        Values of columns whose names end in a unit of ``_UNITS`` get that unit on the page.

        Parameters
        ----------
        name, title, sentence
            As for ``Table``.
        frame : DataFrame
            Values.
        formats : mapping, optional
            Name of a column -> function that formats its values, instead of ``format_cell``.
        """
        self._write_csv(name, frame)
        names, chosen = [], []
        for column in map(str, frame.columns):
            unit = next((unit for unit in _UNITS if column.endswith(f" [{unit}]")), "")
            names.append(column.removesuffix(f" [{unit}]"))
            default = partial(format_value, unit=unit) if unit else format_cell
            chosen.append((formats or {}).get(column, default))
        rows = [
            [write(value) for write, value in zip(chosen, row, strict=True)]
            for row in frame.itertuples(index=False)
        ]
        return Table(name, title, sentence, names, rows)

    def figure(
        self,
        name: str,
        title: str,
        sentence: str,
        frame: pd.DataFrame,
        draw: Draw,
        size: tuple[float, float] = HALF,
        panels: int = 1,
    ) -> Figure:
        """Write a figure as PNG and its numbers as CSV, and return it for the page.

        Parameters
        ----------
        name, title, sentence
            As for ``Figure``.
        frame : DataFrame
            Numbers of the figure.
        draw : callable
            Draws into the axes.
        size : tuple of float
            Size in inches.
        panels : int
            Number of panels beside each other.
        """
        import matplotlib as mpl

        mpl.use("agg")
        import matplotlib.pyplot as plt

        self._write_csv(name, frame)

        with plt.rc_context(_PRINT_SETTINGS):
            figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained")
            draw(axes if panels == 1 else list(axes))
            figure.savefig(self.folder / f"{name}.png", dpi=160, metadata={"Software": None})
            plt.close(figure)
        # On the page every panel is an image of its own, so that panels are stacked on a phone.
        with plt.rc_context(SETTINGS):
            separate = [
                plt.subplots(figsize=(size[0] / panels, size[1]), layout="constrained")
                for _ in range(panels)
            ]
            draw(separate[0][1] if panels == 1 else [axes for _, axes in separate])
            images = tuple(svg(figure, title) for figure, _ in separate)
        return Figure(name, title, sentence, images, size[0] > HALF[0])

    def _write_csv(self, name: str, frame: pd.DataFrame) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            frame.to_csv(self.folder / f"{name}.csv", index=frame.index.name is not None)
        except OSError as error:
            raise BadInput(
                f"cannot write into {self.folder}: {error.strerror}; give another --out"
            ) from None


def format_cell(value: Any) -> str:
    """Return a value of a table as text: numbers with three digits, an en dash for None or NaN."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def format_fraction(value: float | None) -> str:
    """Return a fraction with four digits, the precision at which accuracies differ."""
    return "–" if value is None or value != value else f"{value:.4f}"


ACCURACY_FORMATS = dict.fromkeys(
    ("nonzero accuracy", "spread over events", "error of the mean"), format_fraction
)
"""Formats of the columns of ``harness.study.tables.accuracy_table``."""
