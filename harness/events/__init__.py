"""Event sets: the packed sample, files of four formats, downloads and simulation, to batches."""

from harness.events.batches import TrainingLoader, benchmark_batch, collate
from harness.events.event import CLASSES, Event, Label
from harness.events.event_set import EventSet
from harness.events.open import open_events
from harness.events.sample import open_sample

__all__ = [
    "CLASSES",
    "Event",
    "EventSet",
    "Label",
    "TrainingLoader",
    "benchmark_batch",
    "collate",
    "open_events",
    "open_sample",
]
