"""The results of all submissions as one table, small enough for a page."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.results import store
from harness.results.environment import Environment, facts_in_words
from harness.results.summary import CellSummary, summarize
from harness.spec.cell import Question
from harness.spec.metrics import ENERGY
from harness.submissions.archive import Submission
from harness.submissions.rules import check_file

DIGITS = 4
"""Significant digits of the numbers on the pages."""

STOLEN = 0.005
"""Share of the processors' time, taken by the host, from which it is shown."""


@dataclass(frozen=True)
class Machine:
    """A kind of machine; two submissions from equal machines share it.

    Attributes
    ----------
    identifier : str
        Digest of its facts, for addresses.
    name : str
        The machine in words.
    facts : dict
        Fact -> value.
    words : list of (str, str)
        The facts for readers.
    """

    identifier: str
    name: str
    facts: dict[str, str] = field(hash=False)
    words: list[tuple[str, str]] = field(hash=False, compare=False)


@dataclass(frozen=True)
class Entry:
    """The results of a submission on one machine.

    Attributes
    ----------
    identifier : str
        Start of the digest of its records, for addresses.
    file : str
        Name of the archive.
    submission : Submission
        The archive.
    machine : Machine
        The machine.
    utc : str
        When the last record was made.
    cells : tuple of CellSummary
        The results.
    """

    identifier: str
    file: str
    submission: Submission
    machine: Machine
    utc: str
    cells: tuple[CellSummary, ...]

    @property
    def commit(self) -> str:
        """The commit of the measured engines."""
        return str(self.cells[0].environment.facts.get("commit", ""))


@dataclass(frozen=True)
class Catalogue:
    """All submissions that keep the rules, and why the others do not.

    Attributes
    ----------
    entries : tuple of Entry
        One per machine of a submission, by name of the archive.
    refused : dict
        Name of an archive -> sentences.
    """

    entries: tuple[Entry, ...]
    refused: dict[str, list[str]] = field(hash=False)

    @property
    def machines(self) -> list[Machine]:
        """The machines, by name."""
        found = {entry.machine.identifier: entry.machine for entry in self.entries}
        return sorted(found.values(), key=lambda machine: (machine.name, machine.identifier))

    @property
    def engines(self) -> list[str]:
        """The engines that some machine has tried, by name."""
        return sorted({m.engine for entry in self.entries for m in entry.cells if m.tried})


def read_catalogue(folder: Path) -> Catalogue:
    """Read and check all archives of a folder.

    Raises
    ------
    BadInput
        If the folder has no archive, or an archive cannot be read.
    """
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise BadInput(
            f"{folder} has no archive (*.zip); make one with: submit pack RUN --out FILE"
        )
    entries: list[Entry] = []
    refused: dict[str, list[str]] = {}
    for path in archives:
        found, reasons = check_file(path)
        if found is None or reasons:
            refused[path.name] = reasons
        else:
            entries += _entries(path.name, found)
    return Catalogue(tuple(entries), refused)


def _entries(file: str, submission: Submission) -> Iterable[Entry]:
    """Yield an entry per machine of a submission."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as lines:
        lines.write(submission.lines)
        lines.flush()
        frame = store.read(lines.name)
    cells, utc = summarize(frame), str(frame["utc"].max())
    by_machine: dict[str, tuple[Machine, list[CellSummary]]] = {}
    for cell in cells:
        machine = _machine(cell.environment)
        by_machine.setdefault(machine.identifier, (machine, []))[1].append(cell)
    # Records of engines that could not start name no machine: they belong to the only one.
    unknown = [key for key, (machine, _) in by_machine.items() if not machine.facts]
    if len(by_machine) == 1 + len(unknown):
        rest = [cell for key in unknown for cell in by_machine.pop(key)[1]]
        next(iter(by_machine.values()))[1].extend(rest)
    for machine, own in by_machine.values():
        yield Entry(submission.sha256[:12], file, submission, machine, utc, tuple(own))


def _machine(environment: Environment) -> Machine:
    facts = {
        name.removeprefix("machine."): str(value)
        for name, value in sorted(environment.machine.facts.items())
    }
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    words = facts_in_words(environment.machine.facts)
    return Machine(digest[:8], environment.label, facts, words)


QUESTION = ("device", "phase", "map", "size", "batch", "precision", "network", "events")
"""The parts of a question by which the page filters."""

COLUMNS = (
    *("submission", "machine", "engine", "question", "outcome"),
    *("seconds", "low", "high", "memory", "error", "accuracy", "labelled"),
    *("energy", "throttled", "stolen"),
)


def question_parts(question: Question) -> tuple[str | int, ...]:
    """Return the values of ``QUESTION`` for a question."""
    phase = f"{question.layer} {question.phase}" if question.layer else question.phase
    words = question.description.partition(f" on {question.device}")[2].lstrip(", ")
    network = words or "random weights"
    events = f"{question.events.count} events" if question.events.count else "one batch"
    dim = "" if question.dim == 3 else f" {question.dim}D"
    return (
        *(question.device, f"{phase}{dim}", question.map, question.size, question.batch),
        *(question.precision, network, events),
    )


def to_data(catalogue: Catalogue) -> dict[str, Any]:
    """Return the catalogue as JSON values, in which each text stands once.

    Returns
    -------
    dict
        ``machines`` (identifier, name), ``engines``, ``questions`` (values of ``QUESTION``),
        ``submissions`` (identifier, file, commit), ``outcomes``, and ``rows`` with the values of
        ``COLUMNS``, where texts are numbers of these lists; nulls at the end are left out.
    """
    machines = catalogue.machines
    places = {machine.identifier: i for i, machine in enumerate(machines)}
    engines: dict[str, int] = {}
    questions: dict[tuple[str | int, ...], int] = {}
    outcomes: dict[str, int] = {}
    submissions: dict[tuple[str, str, str], int] = {}
    rows = []
    for entry in catalogue.entries:
        name = (entry.identifier, entry.file, entry.commit)
        number = submissions.setdefault(name, len(submissions))
        for m in entry.cells:
            parts = question_parts(m.question)
            rows.append(
                [
                    number,
                    places[entry.machine.identifier],
                    engines.setdefault(m.engine, len(engines)),
                    questions.setdefault(parts, len(questions)),
                    outcomes.setdefault(m.side.outcome, len(outcomes)),
                    *_numbers(m),
                ]
            )
    return {
        "machines": [[machine.identifier, machine.name] for machine in machines],
        "engines": list(engines),
        "questions": [list(parts) for parts in questions],
        "submissions": [list(name) for name in submissions],
        "outcomes": list(outcomes),
        "rows": rows,
    }


def _numbers(m: CellSummary) -> list[float | int | None]:
    ok = m.ok
    values: Sequence[float | None] = (
        *((m.seconds, m.low, m.high) if ok else (None, None, None)),
        m.memory if ok else None,
        m.error,
        None if m.labelling is None else m.labelling.nonzero,
        _labelled(m),
        m.values.get(ENERGY.key) if ok else None,
        m.throttled / m.side.samples if m.throttled else None,
        m.stolen if m.stolen and m.stolen >= STOLEN else None,
    )
    found = [None if value is None else _rounded(value) for value in values]
    while found and found[-1] is None:
        found.pop()
    return found


def _labelled(m: CellSummary) -> int | None:
    """Return the number of labelled events, if the engine was too slow for all."""
    count = 0 if m.labelling is None else len(m.labelling.labelled)
    return count if 0 < count < m.cell.events.count else None


def _rounded(value: float) -> float | int:
    found = float(f"{value:.{DIGITS}g}")
    return int(found) if found.is_integer() else found
