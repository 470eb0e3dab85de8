"""Labels of many events, in batches: for the accuracy of a cell beyond its own batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from harness.events import collate, open_events
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
    """Yield the first ``cell.events.count`` events that have voxels, in batches, on the CPU."""
    events = open_events(source, size=cell.size)[: cell.events.count]
    chosen = [event for event in events if len(event)]
    for start in range(0, len(chosen), cell.batch):
        yield sparse_batch(collate(chosen[start : start + cell.batch], inputs=cell.model.inputs))


def label_events(
    workload: Workload, source: str, reference: Reference | None, budget: float
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

    Returns
    -------
    LabelAccuracy or None
        None if the events have no labels.
    """
    batches: list[SparseBatch] = []
    logits: list[Tensor] = []
    end = time.perf_counter() + BUDGETS * budget
    for batch in event_batches(workload.cell, source):
        batches.append(batch)
        logits.append(workload.logits(batch).float().cpu())
        if time.perf_counter() > end:
            break
    expected = None
    if reference is not None:
        rows = sum(len(batch.sites) for batch in batches)
        sizes = [len(batch.sites) for batch in batches]
        expected = list(torch.split(reference.logits[:rows], sizes))
    return label_accuracy(batches, logits, expected)
