"""Comparison of each layer, and of the network, with the limits of the machine.

The limit of a layer is the sum of two times: its necessary operations over the peak rate, and its
necessary bytes over the copy bandwidth; but at least the time of its launches. It is the sum and
not the maximum, because operands must arrive from memory before they are multiplied. With perfect
overlap of arithmetic and memory traffic, the limit could be up to two times lower. A layer whose
data stays in a cache can be faster than its limit, because the bandwidth is that of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.profile.ceilings import Ceilings
from harness.profile.profile import LayerProfile, Profile
from harness.report.style import FAINT, INK, PALETTE, PAPER, SETTINGS, Looks, svg
from harness.spec.metrics import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 3
"""Number of layers named in the figure of one engine: the slowest ones."""

RULE = "operations / peak + bytes / copy bandwidth, and no less than calls × launch"


@dataclass(frozen=True)
class Limit:
    """The least possible time of some work, and its measured time.

    Attributes
    ----------
    arithmetic, traffic, launch : float
        Seconds of the needed operations at the peak rate, of the necessary bytes at the copy
        bandwidth, and of starting the work.
    measured : float
        Seconds.
    """

    arithmetic: float
    traffic: float
    launch: float
    measured: float

    @property
    def seconds(self) -> float:
        """The least possible time."""
        return max(self.arithmetic + self.traffic, self.launch)

    @property
    def ratio(self) -> float:
        """The measured time over the least possible time."""
        return self.measured / self.seconds if self.seconds else math.nan


def ceilings_of(profile: Profile) -> Ceilings | None:
    """Return a profile's ceilings; None if it has none for its precision.

    Raises
    ------
    BadInput
        If they do not have the format of ``harness.profile.ceilings``.
    """
    if profile.ceilings is None:
        return None
    found = Ceilings.from_json(profile.ceilings)
    return found if profile.cell.precision in found.flops else None


def limit_of(layer: LayerProfile, ceilings: Ceilings, precision: str) -> Limit | None:
    """Return a layer's limit; None if its necessary work is unknown."""
    if layer.flops is None and layer.bytes is None:
        return None
    return Limit(
        arithmetic=(layer.flops or 0) / ceilings.flops[precision],
        traffic=(layer.bytes or 0) / ceilings.copy,
        launch=layer.calls * ceilings.launch,
        measured=layer.seconds,
    )


def limits(profile: Profile) -> list[Limit | None]:
    """Return the limit of each layer, in order; None for a layer without one."""
    ceilings = ceilings_of(profile)
    if ceilings is None:
        return [None] * len(profile.layers)
    return [limit_of(layer, ceilings, profile.cell.precision) for layer in profile.layers]


def network_limit(profile: Profile, directions: Sequence[str] = ()) -> Limit | None:
    """Return the limit of the network: the sum of its layers' limits, and the whole time.

    Parameters
    ----------
    profile : Profile
        The result is None if it has no ceilings.
    directions : sequence of str
        Include only layers of these directions, and the sum of their times. By default, all
        layers are included, and the time is that of the cell without instruments.
    """
    pairs = [
        (layer, limit)
        for layer, limit in zip(profile.layers, limits(profile), strict=True)
        if not directions or layer.direction in directions
    ]
    existing = [limit for _, limit in pairs if limit is not None]
    if not existing:
        return None
    measured = math.fsum(layer.seconds for layer, _ in pairs) if directions else profile.seconds
    return Limit(
        arithmetic=math.fsum(limit.arithmetic for limit in existing),
        traffic=math.fsum(limit.traffic for limit in existing),
        launch=math.fsum(limit.launch for limit in existing),
        measured=measured,
    )


def roof(intensity: float, peak: float, copy: float) -> float:
    """Return the highest possible rate at a number of operations per byte."""
    return 1 / (1 / peak + 1 / (intensity * copy))


def plotted_layers(profile: Profile) -> list[LayerProfile]:
    """Return the layers of the figure: those that multiply."""
    return [layer for layer in profile.layers if layer.flops and layer.bytes and layer.seconds]


def roofline_figure(profiles: Sequence[Profile], looks: Looks, names: Sequence[str]) -> str:
    """Draw achieved rates over operations per byte, under the roof, as SVG.

    One profile has a colour for each level; several have a colour and a marker for each engine.
    Filled markers are forward, open ones backward. The area of a marker is proportional to time.

    Parameters
    ----------
    profiles : sequence of Profile
        At least one has ceilings.
    looks : Looks
        Colours and markers of the names.
    names : sequence of str
        Names of the profiles.
    """
    import matplotlib.pyplot as plt

    layers = [layer for profile in profiles for layer in plotted_layers(profile)]
    roofs = highest_roofs(profiles)
    if not layers or not roofs:
        return ""
    intensities = [(layer.flops or 0) / (layer.bytes or 1) for layer in layers]
    low, high = min(intensities) / 2, max(intensities) * 2
    with plt.rc_context(SETTINGS):
        drawing, axes = plt.subplots(figsize=(7.6, 4.6))
        axes.set_xscale("log")
        axes.set_yscale("log")
        for peak, copy, precision in sorted(roofs, reverse=True):
            _roof(axes, low, high, peak, copy, precision)
        longest = max(layer.seconds for layer in layers)
        for profile, name in zip(profiles, names, strict=True):
            single = len(profiles) == 1
            for layer in plotted_layers(profile):
                color = PALETTE[(layer.level or 0) % len(PALETTE)] if single else looks.color(name)
                marker = "o" if single else looks.marker(name)
                _point(axes, layer, color, marker, longest)
        if len(profiles) == 1:
            _name(axes, longest_layers(layers))
            for level in sorted({layer.level for layer in layers if layer.level is not None}):
                color = PALETTE[level % len(PALETTE)]
                axes.plot([], [], "o", color=color, label=f"level {level}")
        else:
            for name in names:
                axes.plot([], [], looks.marker(name), color=looks.color(name), label=name)
        if any(layer.direction == "backward" for layer in layers):
            axes.plot([], [], "o", color=INK, label="forward")
            axes.plot([], [], "o", color=INK, markerfacecolor="none", label="backward")
        axes.legend(
            frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4
        )
        rates = [(layer.flops or 0) / layer.seconds for layer in layers]
        axes.set_xlim(low, high)
        axes.set_ylim(min(rates) / 6, max(*rates, *(peak for peak, _, _ in roofs)) * 1.7)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: rate(value))
        axes.set_xlabel("needed operations per necessary byte")
        axes.set_ylabel("needed operations per second")
        return svg(drawing, "Roofline: achieved rates of the layers under the machine's ceilings")


def highest_roofs(profiles: Sequence[Profile]) -> set[tuple[float, float, str]]:
    """Return (peak, copy bandwidth, precision) of the highest ceilings of each precision."""
    found: dict[str, tuple[float, float, str]] = {}
    for profile in profiles:
        ceilings, precision = ceilings_of(profile), profile.cell.precision
        if ceilings is not None:
            roof = (ceilings.flops[precision], ceilings.copy, precision)
            found[precision] = max(found.get(precision, roof), roof)
    return set(found.values())


def rate(value: float, unit: str = "FLOP/s") -> str:
    """Format a rate with a unit prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def limit_sentence(limit: Limit) -> str:
    """Return a clause with a limit and the ratio of the measured time to it."""
    return (
        f"the machine allows {format_value(limit.seconds, 's')} "
        f"({format_value(limit.arithmetic, 's')} of arithmetic and "
        f"{format_value(limit.traffic, 's')} of memory traffic): it takes {limit.ratio:.3g} times "
        f"that"
    )


def _roof(axes: Axes, low: float, high: float, peak: float, copy: float, precision: str) -> None:
    steps = [low * (high / low) ** (i / 60) for i in range(61)]
    axes.plot(steps, [roof(x, peak, copy) for x in steps], color=INK, lw=1.6)
    axes.plot(steps, [min(peak, x * copy) for x in steps], color=INK, lw=0.8, ls=":")
    axes.annotate(
        f"{precision} peak {rate(peak)}, copy {rate(copy, 'B/s')}",
        (low, peak),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8.5,
    )


def _point(axes: Axes, layer: LayerProfile, color: str, marker: str, longest: float) -> None:
    backward = layer.direction == "backward"
    axes.scatter(
        [(layer.flops or 0) / (layer.bytes or 1)],
        [(layer.flops or 0) / layer.seconds],
        s=14 + 130 * layer.seconds / longest,
        marker=marker,
        facecolors="none" if backward else color,
        edgecolors=color if backward else PAPER,
        linewidths=1.3 if backward else 0.6,
        alpha=0.9,
    )


def longest_layers(layers: Iterable[LayerProfile], number: int = NAMED) -> list[LayerProfile]:
    """Return the slowest layers, each name once."""
    found: dict[str, LayerProfile] = {}
    for layer in sorted(layers, key=lambda layer: -layer.seconds):
        found.setdefault(layer.name, layer)
    return list(found.values())[:number]


def _name(axes: Axes, layers: Iterable[LayerProfile]) -> None:
    """Write the names of layers at the lower edge, each on its own line, without overlap."""
    for place, layer in enumerate(layers):
        axes.annotate(
            layer.name,
            ((layer.flops or 0) / (layer.bytes or 1), (layer.flops or 0) / layer.seconds),
            xytext=(0.98, 0.03 + 0.055 * place),
            textcoords="axes fraction",
            ha="right",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.8},
        )
