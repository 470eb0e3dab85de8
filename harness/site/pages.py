"""Writes the site: the rankings, and a page per machine, engine and submission."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from backends import defects
from harness.files import make_folder, refuse, write_text
from harness.report.html import environment, save
from harness.results.summary import CellSummary
from harness.site.catalogue import COLUMNS, QUESTION, Catalogue, Entry, question_parts, to_data
from harness.site.engine import history, install_commands, install_facts, plain_name, versions
from harness.spec.cell import Question

INITIAL = {"phase": "forward", "map": "cold", "size": "192", "batch": "1", "precision": "fp32"}
"""The filters of the rankings when the page is opened without any."""


DOCUMENTATION = "docs"
"""Folder of the documentation within the site."""


def write_site(folder: Path, catalogue: Catalogue, docs: Path | None = None) -> Path:
    """Write all pages into a folder.

    Parameters
    ----------
    folder : Path
        The folder of the site.
    catalogue : Catalogue
        The results.
    docs : Path, optional
        Folder of the built documentation, which is copied into the site.

    Returns
    -------
    Path
        The first page.

    Raises
    ------
    BadInput
        If the folder cannot be written.
    """
    site = _Site(folder, catalogue, docs is not None)
    if docs is not None:
        try:
            shutil.copytree(docs, folder / DOCUMENTATION, dirs_exist_ok=True)
        except OSError as error:
            refuse(folder, error, "--out")
    site.write_rankings()
    site.write_lists()
    for entry in catalogue.entries:
        site.write_submission(entry)
    for machine in catalogue.machines:
        own = [entry for entry in catalogue.entries if entry.machine == machine]
        site.write_machine(own)
    for engine in catalogue.engines:
        site.write_engine(engine)
    return folder / "index.html"


def engine_page(engine: str) -> str:
    """Return the address of an engine's page: its name without characters of paths."""
    name = re.sub(r"[^\w.-]+", "-", engine)
    return f"engines/{name}.html"


class _Site:
    """The pages of a catalogue in a folder."""

    def __init__(self, folder: Path, catalogue: Catalogue, documented: bool) -> None:
        self._folder, self._catalogue = folder, catalogue
        self._templates = environment("harness.site")
        files = {entry.file for entry in catalogue.entries}
        self._common = {"count": len(files), "documented": documented}
        for name in ("", "machines", "engines", "submissions"):
            make_folder(folder / name, "--out")

    def _write(self, template: str, name: str, **values: Any) -> None:
        up = "../" * name.count("/")
        text = self._templates.get_template(template).render(up=up, **self._common, **values)
        save(text, self._folder / name, "--out")

    def write_rankings(self) -> None:
        """Write the page of rankings with its data and its script."""
        data = to_data(self._catalogue) | {"parts": QUESTION, "columns": COLUMNS}
        data["enginePages"] = [engine_page(engine) for engine in data["engines"]]
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        # In a script, texts of others could otherwise end it.
        safe = (
            text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        )
        write_text(self._folder / "data.js", f"const DATA = {safe};\n", "--out")
        script = resources.files("harness.site") / "templates" / "app.js"
        write_text(self._folder / "app.js", script.read_text(encoding="utf-8"), "--out")
        gpus = any("gpu" in machine.facts for machine in self._catalogue.machines)
        self._write("index.html.j2", "index.html", parts=QUESTION, initial=INITIAL, gpus=gpus)

    def write_lists(self) -> None:
        """Write the lists of machines, engines and submissions."""
        catalogue = self._catalogue
        machines = [
            (f"machines/{m.identifier}.html", m.name, [_measured(catalogue, m.identifier)])
            for m in catalogue.machines
        ]
        engines = [
            (engine_page(e), e, [len({x.machine.identifier for x in _with(catalogue, e)})])
            for e in catalogue.engines
        ]
        submissions: list[tuple[str, str, list[Any]]] = [
            (f"submissions/{e.identifier}.html", e.file, [e.machine.name, e.commit[:10], "kept"])
            for e in catalogue.entries
        ]
        submissions += [
            ("", name, ["", "", " ".join(reasons)]) for name, reasons in catalogue.refused.items()
        ]
        for name, columns, rows in (
            ("machines", ("machine", "results"), machines),
            ("engines", ("engine", "machines"), engines),
            ("submissions", ("submission", "machine", "commit", "rules"), submissions),
        ):
            self._write(
                "list.html.j2", f"{name}.html", heading=name.title(), columns=columns, rows=rows
            )

    def write_submission(self, entry: Entry) -> None:
        """Write the page of a submission."""
        manifest = entry.submission.manifest
        self._detail(
            f"submissions/{entry.identifier}.html",
            "Submission",
            entry.file,
            facts=[line.split(": ", 1) for line in manifest.machine if ": " in line],
            blocks=[
                ("Measure it again", manifest.commands),
                ("Packages", manifest.packages),
                ("Digest of the records", (manifest.sha256,)),
            ],
            links=[(f"../machines/{entry.machine.identifier}.html", entry.machine.name)],
            links_title="Machine",
            failures=_failures(entry.cells),
        )

    def write_machine(self, entries: Sequence[Entry]) -> None:
        """Write the page of a machine, from the submissions that it has measured."""
        machine = entries[0].machine
        links = [(f"../index.html#{urlencode({'machine': machine.identifier})}", "rankings")]
        links += [(f"../submissions/{e.identifier}.html", e.file) for e in entries]
        self._detail(
            f"machines/{machine.identifier}.html",
            "Machine",
            machine.name,
            template="machine.html.j2",
            facts=machine.words,
            fastest=fastest_engines(entries),
            links=links,
            links_title="Results",
            failures=_failures([m for entry in entries for m in entry.cells]),
        )

    def write_engine(self, engine: str) -> None:
        """Write the page of an engine."""
        entries = _with(self._catalogue, engine)
        machines = {entry.machine.identifier: entry.machine for entry in entries}
        every = dict.fromkeys(QUESTION, "") | {"search": engine}
        links = [
            (
                f"../index.html#{urlencode(every | {'machine': key})}",
                f"{machine.name}: {_measured(self._catalogue, key, engine)} results",
            )
            for key, machine in machines.items()
        ]
        measured = versions(entries, engine)
        self._detail(
            engine_page(engine),
            "Engine",
            engine,
            template="engine.html.j2",
            facts=[("measured versions", ", ".join(measured))] if measured else [],
            install=install_facts(engine),
            blocks=[("Install and measure", install_commands(engine))],
            defects=defects.known(plain_name(engine)),
            history=history(entries, engine),
            links=links,
            links_title="Machines",
            failures=_failures([m for entry in entries for m in entry.cells if m.engine == engine]),
        )

    def _detail(
        self, name: str, kind: str, heading: str, template: str = "detail.html.j2", **values: Any
    ) -> None:
        usual: dict[str, Any] = {"blocks": [], "facts": []}
        self._write(template, name, kind=kind, heading=heading, **(usual | values))


class Fastest(NamedTuple):
    """The fastest engine of a machine for one question, and the next one.

    Attributes
    ----------
    first : CellSummary
        The fastest.
    following : CellSummary or None
        The next one; None without another engine.
    address : str
        That of the ranking.
    """

    first: CellSummary
    following: CellSummary | None
    address: str

    @property
    def where(self) -> str:
        """The question in words."""
        count = self.first.question.events.count
        return f"{self.first.where}, {count} events" if count else self.first.where

    @property
    def ratio(self) -> float | None:
        """How many times as long the next engine takes."""
        if self.following is None or not self.first.seconds or not self.following.seconds:
            return None
        return self.following.seconds / self.first.seconds


def fastest_engines(entries: Sequence[Entry]) -> list[Fastest]:
    """Return the fastest engines of a machine, by question; of each engine its best time counts."""
    best: dict[Question, dict[str, CellSummary]] = {}
    for m in (m for entry in entries for m in entry.cells if m.ok and m.seconds):
        of_engine = best.setdefault(m.question, {})
        if m.engine not in of_engine or (m.seconds or 0) < (of_engine[m.engine].seconds or 0):
            of_engine[m.engine] = m
    found = []
    for question, of_engine in best.items():
        first, *others = sorted(of_engine.values(), key=lambda m: m.seconds or 0)
        filters = dict(zip(QUESTION, map(str, question_parts(question)), strict=True))
        filters["machine"] = entries[0].machine.identifier
        address = f"../index.html#{urlencode(filters)}"
        found.append(Fastest(first, others[0] if others else None, address))
    return sorted(found, key=lambda f: question_parts(f.first.question))


def _with(catalogue: Catalogue, engine: str) -> list[Entry]:
    """Return the submissions in which an engine was tried."""
    return [
        entry
        for entry in catalogue.entries
        if any(m.engine == engine and m.tried for m in entry.cells)
    ]


def _measured(catalogue: Catalogue, machine: str, engine: str = "") -> int:
    """Return the number of times that a machine has measured, of one engine or all."""
    return sum(
        m.ok and (not engine or m.engine == engine)
        for entry in catalogue.entries
        if entry.machine.identifier == machine
        for m in entry.cells
    )


def _failures(cells: Iterable[CellSummary]) -> list[CellSummary]:
    """Return the cells without a time; of an engine that is not installed only the first."""
    found: list[CellSummary] = []
    absent: set[str] = set()
    for m in cells:
        if m.ok or m.engine in absent:
            continue
        if not m.tried:
            absent.add(m.engine)
        found.append(m)
    return found
