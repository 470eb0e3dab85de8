"""``python -m harness site``: static pages of submitted results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.errors import BadInput
from harness.terminal import plain


def site(
    submissions: Annotated[Path, typer.Argument(help="Folder with archives of submit pack.")],
    out: Annotated[Path, typer.Option(help="Folder of the pages.")],
    docs: Annotated[
        Path | None, typer.Option(help="Folder of the built documentation, to copy beside them.")
    ] = None,
) -> None:
    """Write static pages of submissions; archives that break a rule are named and left out."""
    from harness.site.catalogue import read_catalogue
    from harness.site.pages import write_site

    if not submissions.is_dir():
        raise BadInput(f"{submissions} is no folder; give the one with the archives")
    if docs is not None and not (docs / "index.html").is_file():
        raise BadInput(f"{docs} has no index.html; build the documentation first: make docs")
    found = read_catalogue(submissions)
    console = Console(highlight=False)
    for name, reasons in found.refused.items():
        text = plain(f"{name} is left out. {' '.join(reasons)}")
        console.print(text, markup=False, soft_wrap=True)
    if not found.entries:
        raise BadInput(f"{submissions} has no archive that keeps the rules; see: submit check")
    page = write_site(out, found, docs)
    console.print(f"site: {page}", markup=False, soft_wrap=True)
