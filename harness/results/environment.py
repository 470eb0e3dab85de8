"""Environments: the machine, versions and commit that values belong to; records that share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import BadInput
from harness.spec.metrics import format_value

if TYPE_CHECKING:
    import pandas as pd

MACHINE = (
    *("processor", "cores", "memory_bytes", "threads", "affinity"),
    *("gpu", "driver", "ecc", "mig"),
)
"""Fields of a record's ``machine`` that values depend on; hosts of one kind are interchangeable."""

DEFAULT = "default"
"""Name of the environment of records that name none."""

GIB = 2**30
COMMIT_DIGITS = 12


@dataclass(frozen=True)
class Environment:
    """One machine with one set of versions, at one commit.

    Attributes
    ----------
    facts : mapping of str to value
        Fields of ``machine`` and ``versions`` by their names in the table of records, only those
        that some record has; ``commit``, which says whether there were uncommitted changes; and
        the name of the ``environment``.
    """

    facts: Mapping[str, Any]

    @property
    def machine(self) -> Environment:
        """The machine alone, with the facts that differ between machines."""
        return Environment({k: v for k, v in self.facts.items() if k.startswith("machine.")})

    @property
    def code(self) -> Environment:
        """The versions and the commit alone."""
        return Environment({k: v for k, v in self.facts.items() if not k.startswith("machine.")})

    @property
    def label(self) -> str:
        """The machine in words."""
        fact = self.facts.get
        threads = fact("machine.threads")
        parts = [
            str(fact("machine.processor", "unknown machine")),
            str(fact("machine.gpu", "")),
            f"{threads} threads" if threads else "",
        ]
        return ", ".join(part for part in parts if part)

    def agrees(self, facts: Mapping[str, Any]) -> bool:
        """Return whether no fact that both have differs."""
        own = self.facts
        return all(own[name] == value for name, value in facts.items() if name in own)

    def differing(self, other: Environment) -> list[str]:
        """Return the names of the facts that both have and that differ."""
        both = (name for name in self.facts if name in other.facts)
        return [name for name in both if self.facts[name] != other.facts[name]]

    def changes(self, later: Environment) -> list[str]:
        """Return what a later environment has changed, as ``changed_versions`` does."""
        versions = [
            {_name(k): str(v) for k, v in each.facts.items() if k.startswith("versions.")}
            for each in (self, later)
        ]
        names = [str(each.facts.get("environment", DEFAULT)) for each in (self, later)]
        return changed_versions(versions[0], versions[1], names[0], names[1])

    def choices(self, other: Environment) -> tuple[str, str] | None:
        """Return names by which ``select`` tells two environments apart; None if none does."""
        for fact in self.differing(other):
            if fact == "environment":
                return self.facts[fact], other.facts[fact]
            if fact.startswith("versions."):
                return f"{_name(fact)}@{self.facts[fact]}", f"{_name(fact)}@{other.facts[fact]}"
        return None

    def difference(self, other: Environment) -> str:
        """Return the facts that differ, in words: ``threads 2 and 4, torch 2.12 and 2.13``."""
        return ", ".join(
            f"{_name(name)} {_text(name, self.facts[name])} and {_text(name, other.facts[name])}"
            for name in self.differing(other)
        )


def changed_versions(
    before: Mapping[str, str], after: Mapping[str, str], name_before: str, name_after: str
) -> list[str]:
    """Return the versions that differ, in words: ``spconv 2.3.6 to 2.3.8``.

    If none does, name the environments and the versions that they share; empty if the environments
    are the same as well.

    Parameters
    ----------
    before, after : mapping of str to str
        Versions of the packages of two environments.
    name_before, name_after : str
        Names of the two environments.
    """
    shared = [name for name in after if name in before]
    versions = [f"{n} {before[n]} to {after[n]}" for n in shared if before[n] != after[n]]
    if versions or name_before == name_after:
        return versions
    plural = "s" if len(shared) > 1 else ""
    same = f" with the same version{plural} of {' and '.join(shared)}" if shared else ""
    return [f"environment {name_before} to {name_after}{same}"]


def _name(fact: str) -> str:
    for group in ("machine.", "versions."):
        fact = fact.removeprefix(group)
    return _NAMES.get(fact, fact)


_NAMES = {"memory_bytes": "memory", "gpu": "GPU", "ecc": "ECC", "mig": "MIG"}


def _text(name: str, value: Any) -> str:
    if name == "machine.memory_bytes":
        return format_value(float(value * GIB), "bytes")
    if isinstance(value, bool):
        return "on" if value else "off"
    return _ranges(value) if isinstance(value, tuple) else str(value)


def _ranges(numbers: tuple[Any, ...]) -> str:
    """Write numbers as ranges: ``0 to 3, 8``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{a[0]} to {a[-1]}" if len(a) > 1 else f"{a[0]}" for a in found)


def facts_in_words(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return facts of a machine for readers, as pairs of name and value."""
    return [(_name(name), _text(name, value)) for name, value in facts.items()]


def labels(environments: Sequence[Environment]) -> list[str]:
    """Return a distinct label for each environment: the machine, and what sets it apart.

    A machine that all environments share is left out.
    """
    found: list[str] = []
    shared = len({each.label for each in environments}) == 1
    for number, each in enumerate(environments):
        twins = [other for other in environments if other is not each and other.label == each.label]
        apart = [
            f"{_name(fact)} {_text(fact, value)}"
            for fact, value in each.facts.items()
            if any(fact in twin.facts and twin.facts[fact] != value for twin in twins)
        ]
        if shared and apart:
            label = ", ".join(apart)
        else:
            label = each.label + (f" ({', '.join(apart)})" if apart else "")
        found.append(label if label not in found else f"{label} #{number + 1}")
    return found


def environments(frame: pd.DataFrame) -> tuple[list[Environment], list[int]]:
    """Divide a table of records by environment.

    Records share an environment if they name the same one and no fact that both have differs: a
    worker that died early has no version of its engine, and every engine names its own version
    only. Records that name no machine and no version, of engines that could not run, belong to the
    environment of their run.

    Parameters
    ----------
    frame : DataFrame
        As ``harness.results.store.read`` returns it.

    Returns
    -------
    environments : list of Environment
        In order of appearance.
    places : list of int
        Position of each row's environment in that list.
    """
    columns = [
        name
        for name in map(str, frame.columns)
        if name.startswith("versions.") or name.removeprefix("machine.") in MACHINE
    ]
    rows = list(zip(*(_comparable(name, frame[name].tolist()) for name in columns), strict=True))
    rows = rows or [()] * len(frame)
    codes = _codes(frame)
    merged: list[dict[str, Any]] = []
    numbers: dict[tuple[Code, tuple[Any, ...]], int] = {}
    for code, row in dict.fromkeys(zip(codes, rows, strict=True)):
        facts = {name: v for name, v in zip(columns, row, strict=True) if v is not None}
        if facts:
            numbers[code, row] = _merge(merged, code.facts | facts)
    # Both sides of a run against another commit have one name.
    runs = list(zip(frame["run"].tolist(), codes, strict=True))
    of_run: dict[tuple[str, Code], set[int]] = {}
    for run, row in zip(runs, rows, strict=True):
        place = numbers.get((run[1], row))
        if place is not None:
            of_run.setdefault(run, set()).add(place)
    places = []
    for run, row in zip(runs, rows, strict=True):
        place = numbers.get((run[1], row))
        if place is None:
            alone = run[1].facts
            own = of_run.get(run) or {i for i, e in enumerate(merged) if alone.items() <= e.items()}
            if len(own) != 1:  # no machine, or one of several that the records do not name
                own = {_unknown(merged, alone)}
            (place,) = own
        places.append(place)
    return [Environment(facts) for facts in merged], places


def select(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the records of one environment.

    Parameters
    ----------
    frame : DataFrame
        As ``harness.results.store.read`` returns it.
    name : str
        An environment that records name, ``default`` for those that name none, or
        ``PACKAGE@VERSION``.

    Raises
    ------
    BadInput
        If no record has that environment.
    """
    found, places = environments(frame)
    package, _, version = name.rpartition("@")
    chosen = {i for i, each in enumerate(found) if each.facts["environment"] == name}
    chosen |= {
        i
        for i, each in enumerate(found)
        if not chosen and str(each.facts.get(f"versions.{package}")) == version
    }
    if not chosen:
        named = ", ".join(dict.fromkeys(each.facts["environment"] for each in found)) or "none"
        raise BadInput(
            f"no record is of the environment {name!r}; choose one of these ({named}), or "
            "PACKAGE@VERSION"
        )
    return frame[[place in chosen for place in places]].reset_index(drop=True)


class Code(NamedTuple):
    """What a record says of the measured code and its interpreter."""

    commit: str
    environment: str

    @property
    def facts(self) -> dict[str, Any]:
        """These two as facts of an environment."""
        return self._asdict()


def _codes(frame: pd.DataFrame) -> list[Code]:
    """Name the code of each record: commit, whether files differed from it, and environment."""
    empty = [None] * len(frame)
    dirty = frame["dirty"].tolist() if "dirty" in frame.columns else empty
    named = frame["environment"].tolist() if "environment" in frame.columns else empty
    return [
        Code(
            (commit[:COMMIT_DIGITS] or "unknown") + (" with changes" if changed is True else ""),
            name if isinstance(name, str) and name else DEFAULT,
        )
        for commit, changed, name in zip(frame["commit"].tolist(), dirty, named, strict=True)
    ]


def _merge(merged: list[dict[str, Any]], facts: dict[str, Any]) -> int:
    """Add facts to the first environment that they agree with, or to a new one."""
    for place, own in enumerate(merged):
        if Environment(own).agrees(facts):
            own |= facts
            return place
    merged.append(dict(facts))
    return len(merged) - 1


def _unknown(merged: list[dict[str, Any]], code: dict[str, Any]) -> int:
    """Return the place of an environment of a code alone, which is added if need be."""
    if code not in merged:
        merged.append(code)
    return merged.index(code)


def _comparable(name: str, values: Sequence[Any]) -> list[Any]:
    """Return values that compare equal if they mean the same; None for absent ones."""
    if name == "machine.memory_bytes":
        # The kernel reserves some memory for itself, a little more or less after each start.
        return [None if v is None or v != v else round(v / GIB, 1) for v in values]
    return [
        tuple(v) if isinstance(v, list) else None if v is None or v != v else _plain(v)
        for v in values
    ]


def _plain(value: Any) -> Any:
    """Undo the conversion of whole numbers to floats in columns with absent values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
