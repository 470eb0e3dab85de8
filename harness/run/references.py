"""Float64 references, computed in a process of their own and shared by all engines of a run.

The reference of a large batch takes gigabytes and many seconds. In the worker it would change the
state of the allocator that is about to be measured, and each engine would compute it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.instruments.machine import ROOT
from harness.run.job import Job
from harness.spec.cell import canonical, digest

if TYPE_CHECKING:
    from backends.truth import Truth


def load_reference(job: Job) -> Truth:
    """Return the reference of a job's cell, from the job's folder if it has been computed.

    Raises
    ------
    RuntimeError
        If the process that computes it fails.
    """
    from harness.run.workload import reference_key

    if not job.references:
        return _compute(job)
    path = Path(job.references) / f"{digest(canonical([reference_key(job.cell), job.events]))}.pt"
    if not path.exists():
        command = [sys.executable, "-m", "harness.run.references", str(path)]
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.run(
            command,
            input=json.dumps(job.to_json()),
            text=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
        )
        if child.returncode:
            last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise RuntimeError(f"the float64 reference could not be computed: {last}")
    return _read(path)


def _compute(job: Job) -> Truth:
    from backends import stack, weights
    from backends.truth import truth
    from harness.run.workload import load_batch, operation_config, stack_config, uresnet_config
    from harness.spec.cell import STACKS

    cell = job.cell
    batch, _ = load_batch(cell, job.events)
    if cell.layer:
        from backends import operation

        alone = operation_config(cell)
        values = operation.initial(alone, cell.dim)
        return operation.truth(alone, values, batch, cell.phase)
    if cell.phase in STACKS:
        small = stack_config(cell)
        return stack.truth(small, stack.initial(small, cell.dim), batch)
    config = uresnet_config(cell)
    return truth(config, weights.initial(config, cell.dim), batch, step=cell.phase == "step")


def _write(found: Truth, path: Path) -> None:
    import torch

    partial = path.with_suffix(f".{id(found)}.partial")
    torch.save(
        {
            "logits": found.logits,
            "loss": found.loss,
            "gradients": dict(found.gradients),
            "statistics": dict(found.statistics),
            "method": found.method,
        },
        partial,
    )
    partial.rename(path)


def _read(path: Path) -> Truth:
    import torch

    from backends.truth import Truth

    return Truth(**torch.load(path, weights_only=True))


if __name__ == "__main__":
    _write(_compute(Job.from_json(json.load(sys.stdin))), Path(sys.argv[1]))
