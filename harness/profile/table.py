"""Tables of a profile for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from harness.profile.profile import LayerProfile, Profile

LINES = 30
"""Number of layers with a line of their own on a terminal."""


WIDE = 130
"""Width of a terminal that shows every number, in columns; narrower ones show fewer numbers."""

NUMBERS = ("calls", "time", "share", "bytes", "needed FLOP", "GB/s", "GFLOP/s")
NARROW_NUMBERS = ("time", "share", "GFLOP/s")


def layers_table(profile: Profile, lines: int = LINES, width: int = WIDE) -> Table:
    """Return a table of the slowest layers, with one line for all the others.

    Parameters
    ----------
    profile : Profile
        The profile.
    lines : int
        Layers with a line of their own.
    width : int
        Columns of the terminal.
    """
    table = Table(
        title=f"{profile.cell.title}: {_time(profile.seconds)} per call", title_style="bold"
    )
    narrow = width < WIDE
    columns = [*("layer", "level", "what", "direction"), *NUMBERS]
    shown = [name for name in columns if not narrow or name in ("layer", "what", *NARROW_NUMBERS)]
    for name in shown:
        number = name in NUMBERS
        table.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )

    def add(layers: Sequence[LayerProfile], name: str, kind: str, direction: str) -> None:
        if narrow:
            kind, direction = f"{kind} {direction}".strip(), ""
        row = dict(zip(columns, _row(layers, profile.seconds, name, kind, direction), strict=True))
        table.add_row(*(row[column] for column in shown))

    ordered = sorted(profile.layers, key=lambda layer: -layer.seconds)
    for layer in ordered[:lines]:
        add([layer], layer.name, layer.kind, layer.direction)
    rest = ordered[lines:]
    if rest:
        add(rest, f"{len(rest)} more", "", "")
    table.add_section()
    add(ordered, "all", "", "")
    return table


def kinds_table(profile: Profile, width: int = WIDE) -> Table:
    """Return a table of the time of each kind of work, with forward and backward separate."""
    table = Table()
    for name in ("what", "direction"):
        table.add_column(name)
    shown = NARROW_NUMBERS if width < WIDE else NUMBERS
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[LayerProfile]] = {}
    for layer in profile.layers:
        groups.setdefault((layer.kind, layer.direction), []).append(layer)
    for (kind, direction), layers in sorted(
        groups.items(), key=lambda pair: -sum(layer.seconds for layer in pair[1])
    ):
        row = _row(layers, profile.seconds, "", kind, direction)
        numbers = dict(zip(NUMBERS, row[4:], strict=True))
        table.add_row(kind, direction, *(numbers[name] for name in shown))
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
