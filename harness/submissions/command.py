"""``python -m harness submit``: pack runs for publication, and check what others have packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness.errors import BadInput
from harness.terminal import plain

if TYPE_CHECKING:
    from harness.submissions.archive import Submission

app = typer.Typer(no_args_is_help=True)


@app.command()
def pack(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: files of records, commits, 'latest' or 'baseline'.")
    ],
    out: Annotated[Path, typer.Option(help="The archive to write.")],
) -> None:
    """Pack runs into one archive, without anything of the user, and show what is in it."""
    from harness.submissions.archive import write_archive
    from harness.submissions.packing import pack as pack_runs
    from harness.submissions.rules import check as check_rules

    found = pack_runs(runs)
    reasons = check_rules(found)
    if reasons:
        raise BadInput(f"these runs cannot be submitted. {' '.join(reasons)}")
    write_archive(out, found)
    _show(found)
    Console().print(f"archive: {out}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def check(
    archives: Annotated[list[Path], typer.Argument(help="Archives of submit pack.")],
) -> None:
    """Check archives against the rules; exit with 2 if one breaks any."""
    from harness.submissions.rules import check_file

    broken = False
    for path in archives:
        found, reasons = check_file(path)
        if reasons:
            broken = True
            for reason in reasons:
                typer.echo(plain(f"{path}: {reason}"), err=True)
        elif found is not None:
            typer.echo(f"{path}: {found.manifest.records} records keep all rules")
    if broken:
        raise typer.Exit(2)


def _show(found: Submission) -> None:
    """Print all that an archive says of its machine and its environment."""
    console = Console(highlight=False)
    manifest = found.manifest
    console.print(f"{manifest.records} records, digest {manifest.sha256[:12]}")
    for title, lines in (
        ("machine", manifest.machine),
        ("commands", manifest.commands),
        ("packages", manifest.packages),
    ):
        console.print(f"{title}:")
        for line in lines or ("not known: packed in another environment than it was measured in",):
            console.print(f"  {line}", soft_wrap=True, markup=False)
