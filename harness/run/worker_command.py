"""``python -m harness worker``: measure one cell in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import BadInput


def worker(
    file: Annotated[Path, typer.Argument(help="A cell, or a job, as JSON; - for the input.")],
) -> None:
    """Measure one cell in this process, and print the entries of its record as JSON."""
    from harness.child_process import private_output
    from harness.run.job import Job
    from harness.run.locks import device_lock
    from harness.run.worker import measure_cell

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        job = Job.from_json(json.loads(text))
    except OSError as error:
        raise BadInput(f"cannot read the cell {file}: {error.strerror}") from None
    except RecursionError:
        raise BadInput(f"{file} is nested too deeply to be a cell") from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} is not JSON: {error}") from None
    channel = private_output()
    with device_lock(job.cell.device, lambda text: print(text, file=sys.stderr)):
        found = measure_cell(job)
    channel.write(json.dumps({"cell": job.cell.to_json()} | found) + "\n")
    channel.flush()
