"""Float64 references, computed in a process of their own and shared by all engines of a run.

The reference of a large batch takes gigabytes and many seconds. In the worker it would change the
state of the allocator that is about to be measured, and each engine would compute it again.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.child_process import die_with_parent, was_stopped
from harness.errors import MachineFailure
from harness.run.job import Job
from harness.spec.cell import Cell, canonical, digest
from harness.temporary import temporary_failure

if TYPE_CHECKING:
    from harness.run.engine_interface import Reference, SparseBatch

Variant = Literal["", "image", "features", "events"]
"""An input of a cell: its batch, the image of the last check, its sites with new features, or the
events whose labels make the accuracy."""

CODE = Path(__file__).parents[2]
"""The folder that this process imports the project from, which may have links to it."""

KEPT = "SSCN_BENCH_REFERENCES"
"""Variable that names a folder in which references are kept for later runs."""

IO_ERROR = 74
"""Exit code of the process if the folder of references cannot be written to."""

TOGETHER_SECONDS = 20.0
"""Longest computation of one reference after which the next is computed in the same process."""


def load_reference(job: Job, variant: Variant = "") -> Reference:
    """Return a reference of a job's cell, from a folder if it has been computed.

    The folder is that of the job, or the one that the variable ``KEPT`` names. The process that
    computes the reference of the first check goes on with that of the last one if it was quick.

    Parameters
    ----------
    job : Job
        The job.
    variant : str
        Which input of the cell.

    Raises
    ------
    RuntimeError
        If the process that computes it fails.
    MachineFailure
        If the folder of references is full or cannot be written to.
    """
    if not job.references:
        return _compute(job, variant)
    path = _path(job, variant)
    if not path.exists():
        variants = [variant]
        if not variant and job.cell.map != "first":
            variants.append(last_variant(job.cell))
        search = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
        order = {"job": job.to_json(), "variants": variants, "parent": os.getpid()}
        for _ in range(2):  # once more if it was ended from outside
            child = subprocess.run(
                [sys.executable, "-m", "harness.run.references"],
                input=json.dumps(order),
                text=True,
                capture_output=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
            )
            if not was_stopped(child.returncode):
                break
        if child.returncode == IO_ERROR:
            raise MachineFailure(child.stderr.strip())
        if child.returncode:
            last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise RuntimeError(f"the float64 reference could not be computed: {last}")
    return _read(path)


def last_variant(cell: Cell) -> Variant:
    """Return the input of the last check: new sites for cold cells, new features for warm ones."""
    return "image" if cell.map == "cold" else "features"


def variant_batch(cell: Cell, batch: SparseBatch, variant: Variant) -> SparseBatch:
    """Return the batch of a variant."""
    from harness.run.images import BatchImages, coarsest_stride, with_other_features

    if variant == "image":
        return BatchImages(batch, coarsest_stride(cell), cell.events.seed).check
    return with_other_features(batch) if variant == "features" else batch


def _path(job: Job, variant: Variant) -> Path:
    from harness.run.workload import reference_key

    key = [reference_key(job.cell), job.events, *filter(None, [variant])]
    return Path(os.environ.get(KEPT) or job.references) / f"{digest(canonical(key))}.pt"


def _compute(job: Job, variant: Variant = "") -> Reference:
    from harness.run.engine_interface import (
        chain_reference,
        initial_chain_weights,
        network_reference,
    )
    from harness.run.workload import (
        canonical_weights,
        layer_config,
        load_batch,
        stack_config,
        uresnet_config,
    )
    from harness.spec.cell import STACKS

    cell = job.cell
    if variant == "events":
        return _compute_events(job)
    batch = variant_batch(cell, load_batch(cell, job.events)[0], variant)
    if cell.layer:
        from harness.run.engine_interface import initial_layer_weights, layer_reference

        alone = layer_config(cell)
        values = initial_layer_weights(alone, cell.dim)
        return layer_reference(alone, values, batch, cell.phase)
    if cell.phase in STACKS:
        small = stack_config(cell)
        return chain_reference(small, initial_chain_weights(small, cell.dim), batch)
    values = canonical_weights(job)
    return network_reference(uresnet_config(cell.model), values, batch, step=cell.phase == "step")


def _compute_events(job: Job) -> Reference:
    """Return the logits of the events whose labels make the accuracy of a cell."""
    import torch

    from harness.run.engine_interface import Reference, network_reference
    from harness.run.label_stream import event_batches
    from harness.run.workload import canonical_weights, uresnet_config

    config, values = uresnet_config(job.cell.model), canonical_weights(job)
    found = [
        network_reference(config, values, batch, step=False)
        for batch in event_batches(job.cell, job.events)
    ]
    logits = torch.cat([each.logits for each in found])
    return Reference(logits, None, {}, {}, found[0].method)


def _write(found: Reference, path: Path) -> None:
    import torch

    # In memory first: torch reports a full disk as an internal error without its cause.
    content = io.BytesIO()
    torch.save(
        {
            "logits": found.logits,
            "loss": found.loss,
            "gradients": dict(found.gradients),
            "statistics": dict(found.statistics),
            "method": found.method,
        },
        content,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(content.getbuffer())
    partial.rename(path)


def _read(path: Path) -> Reference:
    import torch

    from harness.run.engine_interface import Reference

    return Reference(**torch.load(path, weights_only=True))


def main() -> None:
    """Compute the references that the standard input names, and write them to the job's folder."""
    die_with_parent()
    values = json.load(sys.stdin)
    job = Job.from_json(values["job"])
    if os.getppid() != values["parent"]:
        return  # it died before this process was bound to it
    start = time.monotonic()
    for variant in values["variants"]:
        if time.monotonic() - start > TOGETHER_SECONDS:
            break
        if not _path(job, variant).exists():
            found = _compute(job, variant)
            try:
                _write(found, _path(job, variant))
            except OSError as error:
                print(temporary_failure(error), file=sys.stderr)
                sys.exit(IO_ERROR)


if __name__ == "__main__":
    main()
