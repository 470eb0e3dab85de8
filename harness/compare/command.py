"""Compare: the engines of one run side by side, or what changed between two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.compare.comparison import (
    Change,
    Standing,
    changes,
    common_drift,
    disturbance,
    failures,
    finding,
    headline,
    machine_labels,
    not_judged,
    standings,
)
from harness.compare.rows import (
    accuracy_text,
    change_rows,
    change_words,
    spread,
    standing_rows,
)
from harness.errors import BadInput
from harness.events.open import SAMPLE
from harness.report.rows import Format, speed, write_rows
from harness.results.store import AGAINST, load, read, resolve
from harness.results.summary import CellSummary, summarize
from harness.results.verdict import Verdict, percent
from harness.spec.metrics import ENERGY, format_value
from harness.terminal import program, table_console

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

LINES_ON_A_SCREEN = 60
WIDE = 120
"""Columns of a terminal from which notes and the reasons of verdicts have a column."""
GATES = {
    str(v).lower(): v
    for v in (Verdict.WRONG, Verdict.MISSING, Verdict.SLOWER, Verdict.WORSE, Verdict.HEAVIER)
}


def standing_table(ranked: Sequence[Standing], notes: bool = True) -> Table:
    """The engines of one machine side by side, for a terminal; without notes, of one question."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("engine")
    accurate = any(accuracy_text(s.measured) for s in ranked)
    metered = any(s.measured.values.get(ENERGY.key) for s in ranked)
    dense = any(s.over_dense is not None for s in ranked)
    for name in (
        *("time", "spread", "memory", "error"),
        *(("accuracy",) if accurate else ()),
        *(("energy per event",) if metered else ()),
        *(("than dense",) if dense else ()),
        "than best other",
    ):
        table.add_column(name, justify="right")
    if notes:
        table.add_column("note", overflow="fold")
    question = None
    for s in ranked:
        m = s.measured
        if notes and m.question != question:
            if question is not None:
                table.add_section()
            question = m.question
            empty = [""] * (5 + accurate + metered + dense)
            table.add_row(f"[bold]{m.where}[/bold]", *empty, m.extent)
        quickest = s.over_best is not None and s.over_best >= 1
        style = "green" if quickest else ""
        table.add_row(
            f"  {m.engine}",
            format_value(m.seconds, "s") if m.ok else f"[red]{m.side.outcome}[/red]",
            spread(m) if m.ok else "",
            format_value(m.memory, "bytes"),
            "–" if m.error is None else f"{m.error:.1e}",
            *((accuracy_text(m) or "–",) if accurate else ()),
            *((format_value(m.values.get(ENERGY.key), ENERGY.unit),) if metered else ()),
            *((speed(s.over_dense),) if dense else ()),
            speed(s.over_best),
            *([escape(m.note)] if notes else []),
            style=style,
        )
    return table


STYLES = {
    Verdict.WRONG: "bold red",
    Verdict.MISSING: "red",
    Verdict.SLOWER: "red",
    Verdict.WORSE: "red",
    Verdict.HEAVIER: "yellow",
    Verdict.UNCLEAR: "yellow",
    Verdict.FASTER: "green",
    Verdict.BETTER: "green",
    Verdict.LIGHTER: "green",
    Verdict.NEW: "cyan",
    Verdict.SAME: "dim",
}


def change_table(found: Sequence[Change], reasons: bool = True) -> Table:
    """Return a table of the changes for a terminal; ``tally`` counts the verdicts SAME."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("verdict", "metric", "engine", "where"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    if reasons:
        table.add_column("why", overflow="fold")
    moved = [c for c in found if c.judgement.verdict is not Verdict.SAME]
    moved = moved[:LINES_ON_A_SCREEN]
    for c, words in zip(moved, change_words(moved), strict=True):
        words["verdict"] = f"[{STYLES[c.judgement.verdict]}]{c.judgement.verdict}[/]"
        words["why"] = escape(words["why"])
        if not reasons:
            words["where"] = c.measured.question.label
            del words["why"]
        table.add_row(*words.values())
    return table


def parse_gates(text: str) -> set[Verdict]:
    """Read ``slower,missing,wrong``.

    Raises
    ------
    BadInput
        For a word that is no gate.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in GATES]
    if unknown:
        raise BadInput(f"--fail-on knows {', '.join(GATES)}, not {unknown[0]!r}")
    return {GATES[word] for word in words}


def tripped(gates: set[Verdict], verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The gates that some verdict trips, gravest first."""
    return sorted(gates & set(verdicts), key=lambda v: v.rank)


def load_sides(a: str | None, b: str | None) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Load what the user named: the run before (None for a single run) and the run after.

    A single run that was measured against another commit has that commit's records in a file
    beside its own, and is compared with it.
    """
    if a is not None and b is not None:
        return load(a), load(b)
    spec = a or "latest"
    frame = load(spec)
    if "@" in spec and not Path(spec).is_file():  # one environment alone
        return None, frame
    files = resolve(spec)
    beside = files[0].with_suffix(AGAINST + files[0].suffix)
    if len(files) == 1 and AGAINST not in files[0].suffixes and beside.is_file():
        return read(beside), frame
    return None, frame


def compare(
    a: Annotated[
        str | None,
        typer.Argument(
            help="A run: a file, a commit, 'latest' or 'baseline'; RUN@ENVIRONMENT for the records "
            "of one environment."
        ),
    ] = None,
    b: Annotated[
        str | None, typer.Argument(help="The run after; without it, the engines of A side by side.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the page index.html into this directory.")
    ] = None,
    events: Annotated[
        str, typer.Option(help="The file of events of the run, to show one on the page.")
    ] = SAMPLE,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
    fail_on: Annotated[
        str, typer.Option(help=f"Exit 1 on any of these verdicts: {', '.join(GATES)}.")
    ] = "",
    explain: Annotated[
        bool,
        typer.Option("--explain", help="A and B are profiles: say which layers differ most."),
    ] = False,
    relative: Annotated[
        str,
        typer.Option(
            "--relative-to",
            help="With two runs: divide times by this engine's, to compare two machines.",
        ),
    ] = "",
) -> None:
    """Compare the engines of one run side by side, or say what changed between two runs."""
    gates = parse_gates(fail_on)
    if explain:
        if gates:
            raise BadInput("--fail-on judges runs; a single profile has no verdict")
        _explain(a, b, report, format)
        return
    frame_before, frame = load_sides(a, b)
    cells = summarize(frame)
    ranked = standings(cells)
    if not ranked:
        raise BadInput(
            f"{b or a or 'latest'} holds no valid record; measure one with: {program()} run"
        )
    found: list[Change] = []
    if frame_before is None:
        if gates - {Verdict.WRONG}:
            raise BadInput("--fail-on other than 'wrong' needs two runs; name the one before too")
        verdicts = [Verdict.WRONG for s in ranked if s.measured.side.outcome == "wrong"]
    else:
        found = changes(summarize(frame_before), cells, relative)
        _refuse_gate_across_machines(gates, found)
        verdicts = [c.judgement.verdict for c in found]
    if format is Format.table:
        _print_tables(ranked, cells, found, frame_before is not None)
    else:
        rows: Sequence[Mapping[str, Any]] = standing_rows(ranked)
        if frame_before is not None:
            rows = change_words(found) if format is Format.markdown else change_rows(found)
        typer.echo(write_rows(rows, format))
    if report is not None:
        from harness.compare.page import write_page

        path = write_page(report, frame, cells, ranked, found, frame_before, events)
        typer.echo(f"page: {path}", err=format is not Format.table)
    hit = tripped(gates, verdicts)
    if hit:
        counts = Counter(verdicts)
        typer.echo(f"failed on {', '.join(f'{counts[v]} {v}' for v in hit)}", err=True)
        raise typer.Exit(1)


def _refuse_gate_across_machines(gates: set[Verdict], found: Sequence[Change]) -> None:
    """Raise ``BadInput`` if a gate would have to judge times of two machines."""
    apart = next((c for c in found if c.two_machines), None)
    if gates and apart is not None:
        raise BadInput(
            f"--fail-on cannot judge runs {apart.judgement.reason}; measure both on one machine "
            "(run --against), or compare ratios with --relative-to ENGINE"
        )


def _explain(a: str | None, b: str | None, report: Path | None, format: Format) -> None:
    """Say which layers make the difference between two profiles."""
    from harness.profile import explain

    if a is None or b is None:
        raise BadInput("--explain needs two profiles: compare A B --explain, each a folder")
    profiles = [explain.load_profile(a), explain.load_profile(b)]
    found = explain.explain(*profiles)
    if format is Format.table:
        console = table_console()
        console.print(f"{found.claim}. {found.reason}", style="bold", markup=False)
        console.print(explain.explanation_table(found))
    else:
        typer.echo(write_rows(explain.explanation_rows(found), format))
    if report is not None:
        from harness.profile.page import write_profile_page

        path = write_profile_page(report, profiles)
        typer.echo(f"page: {path}", err=format is not Format.table)


def _print_tables(
    ranked: Sequence[Standing],
    cells: Sequence[CellSummary],
    found: Sequence[Change],
    two_runs: bool,
) -> None:
    from rich.markup import escape

    console = table_console()
    if not two_runs:
        shown = [s for s in ranked if s.measured.tried][:LINES_ON_A_SCREEN]
        names = machine_labels(cells)
        for machine, own in groupby(shown, key=lambda s: id(s.measured.environment)):
            if names:
                console.print(names[machine], style="bold", markup=False)
            _print_standings(console, list(own))
        said = finding(cells)
        console.print(said.claim, style="bold")
        for sentence in said.sentences:
            console.print(sentence, markup=False)
        for f in failures(cells):
            if f.outcome == "unavailable":
                console.print(f"{f.engine} is not available here: {escape(f.reason)}", style="dim")
        _print_disturbance(console, cells)
        _print_left_out(console, sum(s.measured.tried for s in ranked))
        return
    moved = sum(c.judgement.verdict is not Verdict.SAME for c in found)
    if moved:
        console.print(change_table(found, reasons=console.width >= WIDE))
    console.print(headline(found), style="bold", markup=False)
    for sentence in not_judged(found):
        console.print(sentence, markup=False)
    if moved and console.width < WIDE:
        console.print(f"Reasons are shown from {WIDE} columns, or by --format csv or --report DIR.")
    drift = common_drift(found)
    if drift is not None:
        console.print(
            f"All engines moved together ({percent(drift)}): suspect the machine, not the code."
        )
    _print_disturbance(console, cells)
    _print_left_out(console, moved)


def _print_standings(console: Console, ranked: Sequence[Standing]) -> None:
    """Print one table, or on a narrow terminal a table for each question with its notes below."""
    if console.width >= WIDE:
        console.print(standing_table(ranked))
        return
    for question, own in groupby(ranked, key=lambda s: s.measured.question):
        rivals = list(own)
        extent = rivals[0].measured.extent
        console.print(f"{question.description}{f': {extent}' if extent else ''}", style="bold")
        console.print(standing_table(rivals, notes=False))
        for s in rivals:
            if s.measured.note:
                console.print(f"{s.measured.engine}: {s.measured.note}", markup=False)


def _print_disturbance(console: Any, cells: Sequence[CellSummary]) -> None:
    said = disturbance(cells)
    if said:
        console.print(said, markup=False, style="yellow")


def _print_left_out(console: Any, rows: int) -> None:
    if rows > LINES_ON_A_SCREEN:
        console.print(f"{rows - LINES_ON_A_SCREEN} more rows: see --format csv or --report DIR.")
