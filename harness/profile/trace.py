"""Trace for the viewers of Chrome and Perfetto: the layers, and torch's operators."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.profile.device import range_label
from harness.profile.ranges import Span

FILE = "trace.json"
LAYERS = "layers"
OPERATORS = "torch's operators, in a separate call"
_LAYERS_PID = 1


def layer_events(spans: Iterable[Span], begin: float = 0.0) -> list[dict[str, Any]]:
    """Return the events of the layers of one call.

    Parameters
    ----------
    spans : iterable of Span
        Ranges of the call.
    begin : float
        Begin of the call on the trace's clock, in microseconds.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": _LAYERS_PID, "name": "process_name", "args": {"name": LAYERS}},
        {"ph": "M", "pid": _LAYERS_PID, "name": "process_sort_index", "args": {"sort_index": -1}},
    ]
    for span in spans:
        events.append(
            {
                "ph": "X",
                "pid": _LAYERS_PID,
                "tid": 1,
                "name": range_label(span.key),
                "cat": span.key.kind,
                "ts": begin + span.begin * 1e6,
                "dur": span.seconds * 1e6,
                "args": span.key._asdict(),
            }
        )
    return events


def operator_events(exported: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a trace that torch's profiler exported."""
    events = [event for event in exported["traceEvents"] if "ph" in event]
    for event in events:
        if event["ph"] == "M" and event.get("name") == "process_labels":
            event["args"] = {"labels": OPERATORS}
    return events


def write_trace(folder: Path, spans: Sequence[Span], exported: Mapping[str, Any]) -> Path:
    """Write the layers of one call and the operators of another, with a common begin."""
    operators = operator_events(exported)
    starts = [event["ts"] for event in operators if event["ph"] == "X"]
    begin = min(starts, default=0.0)
    file = folder / FILE
    events = layer_events(spans, begin) + operators
    file.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))
    return file
