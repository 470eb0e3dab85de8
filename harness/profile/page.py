"""Page of one or several profiles: one self-contained HTML file."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.profile.explain import (
    comparable,
    display_names,
    explain,
    percent,
    signed,
    waterfall,
)
from harness.profile.profile import LayerProfile, MemoryProfile, Profile
from harness.profile.ranges import kind_words
from harness.profile.roofline import (
    RULE,
    Limit,
    ceilings_of,
    limit_sentence,
    limits,
    network_limit,
    rate,
    roofline_figure,
)
from harness.report.html import SHAPES, environment, save
from harness.report.style import FAINT, INK, PALETTE, SETTINGS, Looks, svg
from harness.spec.metrics import format_value

DIRECTIONS = {
    "forward": "Forward",
    "backward": "Backward",
    "step": "Optimiser's step",
}
KIND_COLORS = {
    "convolution": PALETTE[0],
    "map": PALETTE[4],
    "normalisation": PALETTE[2],
    "join": PALETTE[5],
    "add": PALETTE[3],
    "linear": PALETTE[7],
    "loss": PALETTE[6],
    "optimiser": PALETTE[1],
    "input": "#5B6470",
    "host": "#9AA4AF",
}
MEMORY_COLORS = {
    "activation": PALETTE[0],
    "gradient": PALETTE[1],
    "optimiser": PALETTE[3],
    "map": PALETTE[4],
    "workspace": PALETTE[5],
    "other": "#9AA4AF",
}
HELD_SHOWN = 15
DIFFERENCES_SHOWN = 40


@dataclass(frozen=True)
class TableRow:
    """One layer of the table."""

    layer: LayerProfile
    share: float
    limit: Limit | None

    @property
    def color(self) -> str:
        """The colour of its kind."""
        return KIND_COLORS[self.layer.kind]

    @property
    def needed(self) -> str:
        """Needed operations."""
        return "–" if not self.layer.flops else rate(self.layer.flops, "FLOP")

    @property
    def flops(self) -> str:
        """Achieved rate of needed operations."""
        return _rate(self.layer.flops, self.layer.seconds, "FLOP/s")

    @property
    def traffic(self) -> str:
        """Achieved rate of necessary bytes."""
        return _rate(self.layer.bytes, self.layer.seconds, "B/s")


@dataclass(frozen=True)
class Section:
    """Content of the page for one profile."""

    name: str
    profile: Profile
    limit: Limit | None
    kinds: list[tuple[str, str, float, float]]
    tables: list[tuple[str, list[TableRow], float]]
    roofline: str
    memory: str
    held: list[tuple[str, str, int]]
    held_kinds: list[tuple[str, str, int]]

    @property
    def longest(self) -> float:
        """Seconds of the slowest layer."""
        return max((layer.seconds for layer in self.profile.layers), default=0.0)


def write_profile_page(folder: Path, profiles: Sequence[Profile]) -> Path:
    """Write ``index.html`` into a folder.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    profiles : sequence of Profile
        One, or several, whose layers are drawn in one roofline. For two of one question, the page
        also has the layers that cause the difference.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    return save(render_profile_page(profiles), folder / "index.html", "folder")


def render_profile_page(profiles: Sequence[Profile]) -> str:
    """Return the page as HTML."""
    names = display_names(profiles)
    looks = Looks(names)
    pair = len(profiles) == 2 and comparable(*profiles)
    explained = explain(*profiles) if pair else None
    made = environment("harness.profile")
    made.filters |= {"signed": signed, "percent": percent, "breakable": _breakable}
    ceilings = next((found for p in profiles if (found := ceilings_of(p))), None)
    page: str = made.get_template("profile.html.j2").render(
        looks=looks,
        shapes=SHAPES,
        claim=explained.claim if explained else claim(profiles, names),
        question=", ".join(dict.fromkeys(profile.cell.question.label for profile in profiles)),
        sections=[section(p, n) for p, n in zip(profiles, names, strict=True)],
        kind_colors=KIND_COLORS,
        memory_colors=MEMORY_COLORS,
        overlay=roofline_figure(profiles, looks, names) if len(profiles) > 1 else "",
        explained=explained,
        differences=explained.parts[:DIFFERENCES_SHOWN] if explained else (),
        waterfall=waterfall(explained) if explained else "",
        ceilings=[
            (name, rate(value), ceilings.methods.get(name, ""))
            for name, value in ceilings.flops.items()
        ]
        if ceilings
        else [],
        copy=rate(ceilings.copy, "B/s") if ceilings else "",
        launch=ceilings.launch if ceilings else None,
        threads=ceilings.threads if ceilings else None,
        rule=RULE,
        limit_sentence=limit_sentence,
    )
    return page


def section(profile: Profile, name: str) -> Section:
    """Return the content of the page for one profile."""
    rows = [
        TableRow(layer, layer.seconds / profile.total if profile.total else 0.0, limit)
        for layer, limit in zip(profile.layers, limits(profile), strict=True)
    ]
    tables = []
    for direction, title in DIRECTIONS.items():
        own = [row for row in rows if row.layer.direction == direction]
        if own:
            tables.append((title, own, math.fsum(row.layer.seconds for row in own)))
    held = profile.memory.at_peak if profile.memory else ()
    sums: dict[str, int] = defaultdict(int)
    for one in held:
        sums[one.kind] += one.bytes
    return Section(
        name=name,
        profile=profile,
        limit=network_limit(profile),
        kinds=kinds(profile),
        tables=tables,
        roofline=roofline_figure([profile], Looks([name]), [name]),
        memory=memory_figure(profile.memory) if profile.memory else "",
        held=[(one.name, one.kind, one.bytes) for one in held[:HELD_SHOWN]],
        held_kinds=sorted(
            ((kind, MEMORY_COLORS[kind], n) for kind, n in sums.items()), key=lambda s: -s[2]
        ),
    )


def kinds(profile: Profile) -> list[tuple[str, str, float, float]]:
    """Sum the layers by kind and direction: (words, colour, seconds, share), descending."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for layer in profile.layers:
        sums[layer.kind, layer.direction] += layer.seconds
    whole = profile.total or 1.0
    found = []
    for (kind, direction), seconds in sorted(sums.items(), key=lambda item: -item[1]):
        words = kind_words(kind, direction)
        found.append((words, KIND_COLORS[kind], seconds, seconds / whole))
    return found


def claim(profiles: Sequence[Profile], names: Sequence[str]) -> str:
    """Return the headline: the kind with most of the time, or the fastest of several engines."""
    if len(profiles) > 1:
        order = sorted(zip(profiles, names, strict=True), key=lambda pair: pair[0].seconds)
        (first, name), (last, other) = order[0], order[-1]
        return (
            f"{name} takes {format_value(first.seconds, 's')}, {other} "
            f"{last.seconds / first.seconds:.3g} times as long"
        )
    words, _, _, share = (kinds(profiles[0]) or [("nothing", "", 0.0, 0.0)])[0]
    whole = format_value(profiles[0].seconds, "s")
    return f"{names[0]} takes {whole}, {100 * share:.0f} % of it for {words}"


def memory_figure(memory: MemoryProfile) -> str:
    """Draw the bytes over the baseline during a call, with the peak marked."""
    import matplotlib.pyplot as plt

    if not memory.timeline:
        return ""
    seconds = [point[0] for point in memory.timeline]
    held = [point[1] for point in memory.timeline]
    top = max(range(len(held)), key=held.__getitem__)
    with plt.rc_context(SETTINGS):
        drawing, axes = plt.subplots(figsize=(7.6, 2.8))
        axes.fill_between(seconds, held, step="post", color=PALETTE[0], alpha=0.25, lw=0)
        axes.step(seconds, held, where="post", color=PALETTE[0], lw=1.3)
        axes.plot([seconds[top]], [held[top]], "o", color=PALETTE[1], ms=6)
        right = seconds[top] > 0.6 * max(seconds)
        axes.annotate(
            f"peak {format_value(held[top], 'bytes')}",
            (seconds[top], held[top]),
            xytext=(-8 if right else 8, 4),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
        )
        axes.axhline(memory.peak - memory.baseline, color=INK, lw=0.8, ls=":")
        axes.set_ylim(0, 1.18 * max(*held, memory.peak - memory.baseline, 1))
        axes.set_xlim(0, max(*seconds, 1e-9))
        axes.xaxis.set_major_formatter(lambda value, _: format_value(value, "s") if value else "0")
        axes.yaxis.set_major_formatter(
            lambda value, _: format_value(value, "bytes") if value else "0"
        )
        axes.grid(axis="x", color=FAINT)
        axes.set_xlabel("time in the call")
        axes.set_ylabel("bytes over the baseline")
        return svg(drawing, "Memory over time, its peak marked")


def _breakable(path: str) -> Any:
    """Allow line breaks after each dot of a module's path."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=\.)", path))


def _rate(amount: int | None, seconds: float, unit: str) -> str:
    return "–" if not amount or not seconds else rate(amount / seconds, unit)
