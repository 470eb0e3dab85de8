"""Shared parts of the HTML pages: templates with their filters, markers, and writing the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.files import make_folder, write_text
from harness.report.rows import speed, times
from harness.results.verdict import percent
from harness.spec.metrics import format_value

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


def environment(package: str) -> Any:
    """Return the templates of a package beside the shared ones, with the filters of all pages.

    Parameters
    ----------
    package : str
        The package whose folder ``templates`` is searched first.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader(
            [PackageLoader(name, "templates") for name in (package, "harness.report")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "seconds": lambda value: format_value(value, "s"),
        "bytes": lambda value: format_value(value, "bytes"),
        "times": times,
        "speed": speed,
        "percent": percent,
        "number": lambda value: f"{value:,}".replace(",", "\u202f"),
        "value": format_value,
    }
    return made


def save(text: str, path: Path, option: str) -> Path:
    """Write a page, making its folder if needed, and return its path.

    Parameters
    ----------
    text
        The page as HTML.
    path
        The file.
    option
        Name of the argument or option with the path, for the error message.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    make_folder(path.parent, option)
    write_text(path, text, option)
    return path
