"""A profile as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from harness.profile.profile import LayerProfile, Profile

LINES = 30
"""Layers that are worth a line of their own on a terminal."""


def layers_table(profile: Profile, lines: int = LINES) -> Table:
    """Return the layers that took longest, and one line for all the others."""
    table = Table(
        title=f"{profile.cell.title}: {_time(profile.seconds)} a call", title_style="bold"
    )
    for name in ("layer", "level", "what", "direction"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "time", "share", "bytes", "needed FLOP", "GB/s", "GFLOP/s"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(profile.layers, key=lambda layer: -layer.seconds)
    for layer in ordered[:lines]:
        table.add_row(*_row([layer], profile.seconds, layer.name, layer.kind, layer.direction))
    rest = ordered[lines:]
    if rest:
        table.add_row(*_row(rest, profile.seconds, f"{len(rest)} more", "", ""))
    table.add_section()
    table.add_row(*_row(ordered, profile.seconds, "all", "", ""))
    return table


def kinds_table(profile: Profile) -> Table:
    """Return what each kind of work took, forward and backward apart."""
    table = Table()
    for name in ("what", "direction"):
        table.add_column(name)
    for name in ("calls", "time", "share", "bytes", "needed FLOP", "GB/s", "GFLOP/s"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str], list[LayerProfile]] = {}
    for layer in profile.layers:
        groups.setdefault((layer.kind, layer.direction), []).append(layer)
    for (kind, direction), layers in sorted(
        groups.items(), key=lambda pair: -sum(layer.seconds for layer in pair[1])
    ):
        row = _row(layers, profile.seconds, "", kind, direction)
        table.add_row(kind, direction, *row[4:])
    return table


def memory_lines(profile: Profile, lines: int = 5) -> list[str]:
    """Return sentences about the peak of the memory."""
    memory = profile.memory
    if memory is None:
        return []
    over = memory.peak - memory.baseline
    found = [
        f"memory: {_bytes(over)} over the {_bytes(memory.baseline)} before the call, "
        f"{memory.share_explained:.0%} of it explained"
    ]
    kinds: dict[str, int] = {}
    for held in memory.at_peak:
        kinds[held.kind] = kinds.get(held.kind, 0) + held.bytes
    parts = sorted(kinds.items(), key=lambda pair: -pair[1])
    if parts:
        found.append("at the peak: " + ", ".join(f"{kind} {_bytes(size)}" for kind, size in parts))
    found += [f"  {held.name} {held.kind} {_bytes(held.bytes)}" for held in memory.at_peak[:lines]]
    return found


def _row(
    layers: Sequence[LayerProfile], whole: float, name: str, kind: str, direction: str
) -> list[str]:
    seconds = sum(layer.seconds for layer in layers)
    moved = [layer for layer in layers if layer.bytes is not None]
    multiplied = [layer for layer in layers if layer.flops is not None]
    levels = {layer.level for layer in layers}
    level = next(iter(levels)) if len(levels) == 1 else None
    bytes_, flops = (
        sum(layer.bytes or 0 for layer in moved),
        sum(x.flops or 0 for x in multiplied),
    )
    return [
        name,
        "" if level is None else str(level),
        kind,
        direction,
        str(sum(layer.calls for layer in layers)),
        _time(seconds),
        f"{seconds / whole:.1%}" if whole else "",
        _bytes(bytes_) if moved else "",
        _amount(flops, "") if multiplied else "",
        _rate(bytes_, sum(layer.seconds for layer in moved)),
        _rate(flops, sum(layer.seconds for layer in multiplied)),
    ]


def _rate(amount: int, seconds: float) -> str:
    return f"{amount / seconds / 1e9:.3g}" if amount and seconds else ""


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(number: int) -> str:
    return _amount(number, "B")


def _amount(number: int, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}".rstrip()
    return f"{number} {unit}".rstrip()
