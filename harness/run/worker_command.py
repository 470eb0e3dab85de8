"""``python -m harness worker``: measure one cell in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def worker(
    file: Annotated[Path, typer.Argument(help="A cell, or a job, as JSON; - for the input.")],
) -> None:
    """Measure one cell in this process, and print the entries of its record as JSON."""
    from harness.child_process import private_output
    from harness.instruments.allocator import keep_freed_memory
    from harness.run.job import read_job
    from harness.run.locks import device_lock
    from harness.run.worker import measure_cell

    job = read_job(file)
    keep_freed_memory()
    channel = private_output()
    with device_lock(job.cell.device, lambda text: print(text, file=sys.stderr)):
        found = measure_cell(job)
    channel.write(json.dumps({"cell": job.cell.to_json()} | found) + "\n")
    channel.flush()
