"""Colours, markers and fonts: an engine looks the same in every figure and table."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any

from backends.registry import BUILT_IN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every common colour blindness; black is left to text and
# yellow is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D46", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_PAIRS = [
    (PALETTE[i], MARKERS[(i + shift) % len(MARKERS)])
    for shift in range(len(MARKERS))
    for i in range(len(PALETTE))
]

# Colours that the page replaces by its own, so that figures follow its light or dark theme.
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
    """Assigns each engine its colour and marker, the same on every page and in every run.

    The engines of the project have pairs of their own. An engine with options, a version or of a
    third party has the pair that its name hashes to, or the next free one if another engine of
    the page has that pair.

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
    """Draw a figure as an SVG element that scales with the page and follows its theme.

    Parameters
    ----------
    figure
        Drawn under `SETTINGS`; closed afterwards.
    title
        What a screen reader says instead.
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
