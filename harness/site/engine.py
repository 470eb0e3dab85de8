"""Facts of an engine for its page: how it is installed, its defects, and its times over dates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from backends.registry import BUILT_IN
from harness.engines import recipe
from harness.results.summary import CellSummary
from harness.site.catalogue import Entry, Machine
from harness.spec.cell import Question

LEAST = 2
"""Submissions from which a series of times is shown."""


def plain_name(engine: str) -> str:
    """Return the name of an engine in the registry, without its version and its options."""
    return re.split("[@:]", engine, maxsplit=1)[0]


def install_commands(engine: str) -> list[str]:
    """Return the commands that install an engine and measure it."""
    name = plain_name(engine)
    found = []
    if name in recipe.names():
        install = f"python -m harness engines install {name}"
        found = [install, *(f"{install} --cuda {v}" for v in recipe.Recipe.find(name).cuda)]
    return [*found, f"python -m harness run inference --backend {name}"]


def install_facts(engine: str) -> list[tuple[str, str]]:
    """Return the recipe of an engine in words: fact and value."""
    name = plain_name(engine)
    if name not in recipe.names():
        own = name in BUILT_IN
        return [("package", "part of sscn-bench" if own else "not part of sscn-bench")]
    found = recipe.Recipe.find(name)
    packages = ", ".join(found.requires)
    if found.source:
        packages = f"{found.source['repository']} at commit {found.source['commit']}"
    facts = [
        ("version", found.version or "the newest one"),
        ("package", packages),
        ("Python", " to ".join(found.python)),
        ("torch", found.torch),
        ("CUDA builds", ", ".join(found.cuda)),
    ]
    if found.build:
        needs = [*found.build.get("programs", ()), *found.build.get("libraries", ())]
        minutes = found.build["minutes"]
        facts.append(("compiled", f"in about {minutes} minutes, with {', '.join(needs)}"))
    return [(fact, value) for fact, value in facts if value]


@dataclass(frozen=True)
class Point:
    """A time of an engine in one submission, in seconds, with its quartiles."""

    entry: Entry
    version: str
    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Times of an engine for one question on one machine, by date."""

    machine: Machine
    where: str
    points: tuple[Point, ...]

    @property
    def ratio(self) -> float:
        """The newest time divided by the oldest."""
        return self.points[-1].seconds / self.points[0].seconds

    def drawn(self, width: float, height: float) -> list[tuple[float, float, float, float]]:
        """Return the places of the points in a figure: x, and y of the median and the quartiles.

        The axis of times starts at zero; submissions have equal distances.
        """
        most = max(point.high for point in self.points)
        step = width / (len(self.points) - 1)

        def y(seconds: float) -> float:
            return round(height * (1 - seconds / most), 1)

        return [
            (round(i * step, 1), y(point.seconds), y(point.low), y(point.high))
            for i, point in enumerate(self.points)
        ]


def history(entries: Iterable[Entry], engine: str) -> list[Series]:
    """Return the series of an engine that several submissions of a machine have measured."""
    found: dict[tuple[str, Question], tuple[Machine, str, list[Point]]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.utc, entry.identifier)):
        for m in entry.cells:
            point = _point(entry, m) if m.engine == engine else None
            if point:
                key = (entry.machine.identifier, m.question)
                found.setdefault(key, (entry.machine, m.where, []))[2].append(point)
    series = [
        Series(machine, where, tuple(points))
        for machine, where, points in found.values()
        if len({point.entry.identifier for point in points}) >= LEAST
    ]
    return sorted(series, key=lambda each: (each.machine.identifier, each.where))


def _point(entry: Entry, m: CellSummary) -> Point | None:
    if not m.ok or m.seconds is None or m.low is None or m.high is None:
        return None
    return Point(entry, _version(m), m.seconds, m.low, m.high)


def versions(entries: Iterable[Entry], engine: str) -> list[str]:
    """Return the versions of an engine's package in some submissions."""
    found = {_version(m) for entry in entries for m in entry.cells if m.engine == engine}
    return sorted(found - {""})


def _version(m: CellSummary) -> str:
    return str(m.environment.facts.get(f"versions.{m.cell.backend}", ""))
