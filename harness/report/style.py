"""Colours, markers and fonts, the same for an engine in all figures and tables."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any

from backends.registry import BUILT_IN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which are distinguishable with common colour blindness; without black,
# the colour of text, and yellow, which is too light on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D46", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_PAIRS = [
    (PALETTE[i], MARKERS[(i + shift) % len(MARKERS)])
    for shift in range(len(MARKERS))
    for i in range(len(PALETTE))
]

# Colours that the page replaces with its own, so that figures match its light or dark theme.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
_THEMED = {INK: "currentColor", FAINT: "var(--line)", PAPER: "var(--paper)"}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sscn-bench",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class Looks:
    """Colour and marker of each engine, the same on every page and for every run.

    The engines of the project have fixed pairs of colour and marker. The pair of any other name,
    for example of an engine with options or of a third party, is found by hashing the name; if
    another engine of the page has that pair, the next free pair is used.

    Parameters
    ----------
    engines : iterable of str
        The engines of the page.
    """

    def __init__(self, engines: Iterable[str]) -> None:
        order = {name: place for place, name in enumerate(BUILT_IN)}
        self.engines = sorted(set(engines), key=lambda name: (order.get(name, len(order)), name))
        self._pairs = {name: _PAIRS[order[name]] for name in self.engines if name in order}
        free = _PAIRS[len(order) :]
        for name in self.engines:
            if name not in order:
                start = zlib.crc32(name.encode())
                for step in range(len(free)):
                    pair = free[(start + step) % len(free)]
                    if pair not in self._pairs.values():
                        break
                self._pairs[name] = pair

    def color(self, engine: str) -> str:
        """Return the engine's colour as hexadecimal RGB."""
        return self._pairs[engine][0]

    def marker(self, engine: str) -> str:
        """Return the engine's marker in matplotlib's notation."""
        return self._pairs[engine][1]


def svg(figure: Figure, title: str) -> str:
    """Return a figure as an SVG element that scales with the page and follows its theme.

    Parameters
    ----------
    figure
        Drawn under ``SETTINGS``; closed afterwards.
    title
        Text for screen readers.
    """
    import matplotlib.pyplot as plt

    out = StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for drawn, themed in _THEMED.items():
        text = text.replace(drawn, themed)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Fonts come from the page.
    text = re.sub(r"font: ([^;\"']*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 sans-serif", text)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
