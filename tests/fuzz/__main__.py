"""The command: mutate and read all formats for a time, and report the failures."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from tests.fuzz.formats import FORMATS
from tests.fuzz.runner import try_format


def main(
    seconds: Annotated[float, typer.Option(help="Time for all formats together")] = 60.0,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Formats; all by default")] = None,
) -> None:
    """Read mutated files of every format; exit with 1 if any breaks the reader."""
    names = [form.name for form in FORMATS if not only or form.name in only]
    failed = False
    for name in names:
        until = time.monotonic() + seconds / len(names)
        outcome = try_format(name, seed, None, until=until)
        print(f"{name}: {dict(outcome.counts)}", flush=True)
        for number, failure in outcome.failures[:5]:
            print(f"  seed {number}: {failure}", flush=True)
        failed = failed or bool(outcome.failures)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
