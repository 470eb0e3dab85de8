"""The layers that cause the difference between two profiles of one question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BadInput
from harness.profile.profile import FILE, Profile, read_profile
from harness.profile.ranges import HOST, kind_words
from harness.report.style import FAINT, INK, SETTINGS, svg
from harness.spec.metrics import format_value
from harness.terminal import program

if TYPE_CHECKING:
    from rich.table import Table

STEPS = 12
"""Number of layers with a step of their own in the waterfall; all others share one."""

SLOWER, FASTER, TOTAL = "#D55E00", "#009E73", "#7A7A7A"


@dataclass(frozen=True)
class LayerDifference:
    """One layer in two profiles.

    Attributes
    ----------
    name, kind, direction : str
        The layer.
    before, after : float or None
        Seconds; None where a profile has no such layer.
    share : float
        Fraction of the difference between the two cells; if they are equally fast, of the sum of
        all absolute changes.
    """

    name: str
    kind: str
    direction: str
    before: float | None
    after: float | None
    share: float

    @property
    def difference(self) -> float:
        """Additional seconds of the layer in the second profile."""
        return (self.after or 0.0) - (self.before or 0.0)

    @property
    def words(self) -> str:
        """Description of the layer for users."""
        what = "between layers" if self.kind == HOST else f"{self.name} {self.kind}"
        return f"{what}, {self.direction}"

    @property
    def group_words(self) -> str:
        """Description of the kind and direction of the layer for users."""
        return kind_words(self.kind, self.direction)


@dataclass(frozen=True)
class Explanation:
    """The difference between two cells, by layers.

    Attributes
    ----------
    names : (str, str)
        Names of the profiles.
    before, after : float
        Seconds of the cells without instruments.
    parts : tuple of LayerDifference
        In descending order of the difference.
    """

    names: tuple[str, str]
    before: float
    after: float
    parts: tuple[LayerDifference, ...]

    @property
    def difference(self) -> float:
        """Additional seconds of the second cell."""
        return self.after - self.before

    @property
    def unexplained(self) -> float:
        """Seconds of the difference that are in no layer, due to instruments and noise."""
        return self.difference - math.fsum(part.difference for part in self.parts)

    @property
    def claim(self) -> str:
        """A sentence: which of the two is slower, by how much, and the kind with most of it."""
        first, second = self.names
        said = (
            f"{second} takes {format_value(abs(self.difference), 's')} "
            f"{'longer' if self.difference >= 0 else 'less'} than {first}"
        )
        same_sign = self.groups and self.groups[0].difference * self.difference > 0
        if same_sign and abs(self.groups[0].share) > 0.5:
            said += f", most of it in {self.groups[0].group_words}"
        return said

    @property
    def groups(self) -> list[LayerDifference]:
        """The differences summed by kind and direction, in descending order."""
        members: dict[tuple[str, str], list[LayerDifference]] = {}
        for part in self.parts:
            members.setdefault((part.kind, part.direction), []).append(part)
        found = [
            LayerDifference(
                "",
                kind,
                direction,
                math.fsum(part.before or 0.0 for part in parts),
                math.fsum(part.after or 0.0 for part in parts),
                math.fsum(part.share for part in parts),
            )
            for (kind, direction), parts in members.items()
        ]
        return sorted(found, key=lambda group: -abs(group.difference))

    @property
    def reason(self) -> str:
        """Sentences: both times, the kind with most of the difference, and the layer."""
        times = f"{format_value(self.after, 's')} against {format_value(self.before, 's')}."
        if not self.parts or not self.parts[0].difference:
            return f"{times} No layer differs."
        group, top = self.groups[0], self.parts[0]
        how_much = "Most" if abs(group.share) > 0.5 else "The largest part"
        return (
            f"{times} {how_much} of the difference is in {group.group_words}: "
            f"{signed(group.difference)}. The layer that differs most is {top.words}: "
            f"{signed(top.difference)}."
        )


def explain(first: Profile, second: Profile) -> Explanation:
    """Compare two profiles layer by layer.

    Parameters
    ----------
    first, second : Profile
        Two engines, or two commits of one, on the same question.

    Raises
    ------
    BadInput
        If their questions differ.
    """
    if not comparable(first, second):
        raise BadInput(
            "these profiles are of different questions and cannot be compared: "
            f"{_question(first)} and {_question(second)}"
        )
    before = {layer.key: layer.seconds for layer in first.layers}
    after = {layer.key: layer.seconds for layer in second.layers}
    keys = list(dict.fromkeys([*before, *after]))
    changes = {key: after.get(key, 0.0) - before.get(key, 0.0) for key in keys}
    whole = second.seconds - first.seconds
    moved = math.fsum(map(abs, changes.values()))
    # If the cells are equally fast, gains of some layers cancel losses of others.
    base = whole if abs(whole) > 0.01 * max(first.seconds, second.seconds) else moved
    parts = [
        LayerDifference(*key, before.get(key), after.get(key), changes[key] / base if base else 0.0)
        for key in keys
    ]
    parts.sort(key=lambda part: -abs(part.difference))
    return Explanation(display_names([first, second]), first.seconds, second.seconds, tuple(parts))


def comparable(first: Profile, second: Profile) -> bool:
    """Return whether two profiles are of one question on the same events."""
    return first.cell.question == second.cell.question


def display_names(profiles: Sequence[Profile]) -> Any:
    """Name each profile by its engine.

    If an engine occurs more than once, the versions that differ are added, or else the commits.
    """
    engines = [profile.cell.engine for profile in profiles]
    named = []
    for profile, engine in zip(profiles, engines, strict=True):
        twins = [each for each in profiles if each.cell.engine == engine]
        apart = [
            version if package == profile.cell.backend else f"{package} {version}"
            for package, version in profile.versions.items()
            if package != "sscn-bench"  # the commit says more
            and any(twin.versions.get(package, version) != version for twin in twins)
        ]
        commit = str(profile.code.get("commit", ""))[:10]
        dirty = "+" if profile.code.get("dirty") else ""
        if len(twins) > 1:
            engine = f"{engine} {', '.join(apart) or commit + dirty}".strip()
        named.append(engine)
    return tuple(
        name if named.count(name) == 1 else f"{name} ({place})"
        for place, name in enumerate(named, 1)
    )


def load_profile(spec: str) -> Profile:
    """Read the profile that a user names by its folder or its file.

    Raises
    ------
    BadInput
        If there is none.
    """
    path = Path(spec)
    make = f"make one with: {program()} profile --backend B --size S --out DIR"
    if path.is_dir():
        if not (path / FILE).is_file():
            raise BadInput(f"{spec} holds no {FILE}; {make}")
        return read_profile(path)
    if path.is_file() and path.suffix == ".json":
        return read_profile(path)
    what = "is a file of records" if path.is_file() else "names a run or nothing at all"
    raise BadInput(f"--explain needs two profiles, and {spec} {what}; {make}")


def signed(seconds: float) -> str:
    """Format a difference with its sign; less than a nanosecond counts as zero."""
    if abs(seconds) < 1e-9:
        return "0"
    return f"{'+' if seconds >= 0 else '−'}{format_value(abs(seconds), 's')}"


def percent(share: float) -> str:
    """Format a share in percent, with its sign."""
    value = round(100 * share)
    return f"{'−' if value < 0 else ''}{abs(value)} %"


def explanation_rows(found: Explanation) -> list[dict[str, Any]]:
    """Flatten an explanation for a spreadsheet or a program; seconds."""
    return [
        {
            "layer": part.name,
            "kind": part.kind,
            "direction": part.direction,
            "before_s": part.before,
            "after_s": part.after,
            "difference_s": part.difference,
            "share": part.share,
        }
        for part in found.parts
    ]


def explanation_table(found: Explanation, lines: int = 40) -> Table:
    """Return a table of the differences by kind, and of the layers that differ most."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "kind", "direction"):
        made.add_column(name, overflow="fold")
    for name in (*found.names, "difference", "share"):
        made.add_column(name, justify="right", no_wrap=True)
    for group in found.groups:
        made.add_row(
            "all",
            "between layers" if group.kind == HOST else group.kind,
            group.direction,
            format_value(group.before, "s"),
            format_value(group.after, "s"),
            signed(group.difference),
            percent(group.share),
            style="bold",
        )
    made.add_section()
    for part in found.parts[:lines]:
        made.add_row(
            part.name,
            part.kind,
            part.direction,
            format_value(part.before, "s"),
            format_value(part.after, "s"),
            signed(part.difference),
            percent(part.share),
            style="red" if part.difference > 0 else "green" if part.difference < 0 else "",
        )
    made.add_section()
    rest = math.fsum(part.difference for part in found.parts[lines:])
    if len(found.parts) > lines:
        made.add_row(f"{len(found.parts) - lines} more layers", "", "", "", "", signed(rest), "")
    made.add_row("in no layer", "", "", "", "", signed(found.unexplained), "")
    ends = (format_value(found.before, "s"), format_value(found.after, "s"))
    made.add_row("the whole cell", "", "", *ends, signed(found.difference), "", style="bold")
    return made


def waterfall_steps(found: Explanation, most: int = STEPS) -> list[tuple[str, float]]:
    """Return the steps of the waterfall between the two cells: words and seconds."""
    named = [(part.words, part.difference) for part in found.parts[:most] if part.difference]
    others = found.parts[most:]
    if others:
        named.append((f"{len(others)} other layers", math.fsum(part.difference for part in others)))
    return [*named, ("in no layer", found.unexplained)]


def waterfall(found: Explanation) -> str:
    """Draw the waterfall from one cell's time to the other's, layer by layer, as SVG."""
    import matplotlib.pyplot as plt

    between = waterfall_steps(found)
    first, second = found.names
    with plt.rc_context(SETTINGS):
        drawing, axes = plt.subplots(figsize=(7.6, 1.0 + 0.3 * (len(between) + 2)))
        axes.barh([0], [found.before], color=TOTAL, height=0.62)
        level = found.before
        ends = [found.before, found.after]
        for row, (_, seconds) in enumerate(between, 1):
            color = SLOWER if seconds > 0 else FASTER
            axes.barh([row], [seconds], left=level, color=color, height=0.62)
            axes.plot([level, level], [row - 0.69, row + 0.31], color=INK, lw=0.7)
            level += seconds
            ends.append(level)
            edge = max(level, level - seconds)
            axes.annotate(
                signed(seconds),
                (edge, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        last = len(between) + 1
        axes.plot([level, level], [last - 0.69, last + 0.31], color=INK, lw=0.7)
        axes.barh([last], [found.after], color=TOTAL, height=0.62)
        for row, total in ((0, found.before), (last, found.after)):
            axes.annotate(
                format_value(total, "s"),
                (total, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        words = [first, *(word for word, _ in between), second]
        axes.set_yticks(range(last + 1), words)
        axes.set_ylim(last + 0.6, -0.6)
        low, label = _start(ends)
        axes.set_xlim(low, max(ends) + 0.12 * (max(ends) - low))
        axes.xaxis.set_major_formatter(lambda value, _: format_value(value, "s") if value else "0")
        axes.grid(axis="y", visible=False)
        axes.axvline(low, color=FAINT, lw=0.8)
        axes.set_xlabel(label)
        return svg(drawing, f"From {first} to {second}, layer by layer")


def _start(ends: Sequence[float]) -> tuple[float, str]:
    """Return the begin of the waterfall's axis, and its label.

    If all steps are small, the axis does not begin at zero.
    """
    span = max(ends) - min(ends)
    if span > 0.3 * max(ends):
        return 0.0, "time of the cell"
    return max(min(ends) - 0.4 * span, 0.0), "time of the cell (the axis does not begin at zero)"


def _question(profile: Profile) -> str:
    return f"{profile.cell.question.label} (events {profile.cell.events.seed})"
