"""Labels of many events, in batches: for the accuracy of a cell beyond its own batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from harness.events import open_events
from harness.events.batches import labelled_batches
from harness.results.record import LabelAccuracy
from harness.run.label_accuracy import label_accuracy
from harness.run.workload import Workload, sparse_batch
from harness.spec.cell import Cell

if TYPE_CHECKING:
    from torch import Tensor

    from harness.run.engine_interface import Reference, SparseBatch

BUDGETS = 6
"""Time for the labels of all events, in sampling budgets of the cell."""


def event_batches(cell: Cell, source: str) -> Iterator[SparseBatch]:
    """Yield the ``cell.events.count`` events whose labels make the accuracy, on the CPU."""
    spec = cell.events
    events = open_events(source, size=cell.size)
    batches = labelled_batches(events, spec.count, cell.batch, spec.seed, inputs=cell.model.inputs)
    return map(sparse_batch, batches)


def label_events(
    workload: Workload,
    source: str,
    reference: Reference | None,
    budget: float,
    first: tuple[Tensor, Tensor] | None,
    seconds: float,
) -> LabelAccuracy | None:
    """Label the events of a cell, and return the accuracy.

    Parameters
    ----------
    workload : Workload
        The network; it labels in evaluation mode.
    source : str
        ``sample`` or the path of a file of events.
    reference : Reference or None
        Logits of all events, in order.
    budget : float
        Sampling budget of the cell in seconds. An engine that needs more than ``BUDGETS`` of it
        labels fewer events; the record has the labelled voxels of each.
    first : tuple of Tensor or None
        Sites and logits of the cell's own batch, which need not be computed again.
    seconds : float
        Time of a call.

    Returns
    -------
    LabelAccuracy or None
        None if the events have no labels.
    """
    batches: list[SparseBatch] = []
    logits: list[Tensor] = []
    end = time.perf_counter() + BUDGETS * budget
    for batch in event_batches(workload.cell, source):
        if batches and time.perf_counter() + seconds > end:
            break
        known = not batches and first is not None and torch.equal(batch.sites, first[0])
        batches.append(batch)
        logits.append(first[1] if first and known else workload.logits(batch).float().cpu())
    expected = None
    if reference is not None:
        rows = sum(len(batch.sites) for batch in batches)
        sizes = [len(batch.sites) for batch in batches]
        expected = list(torch.split(reference.logits[:rows], sizes))
    return label_accuracy(batches, logits, expected)
