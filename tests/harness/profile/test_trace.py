"""The trace as viewers read it."""

import json

from harness.profile import trace
from harness.profile.device import DeviceTicks, NvtxListener, ProfilerListener, range_label
from harness.profile.ranges import RangeKey, RangeRecorder, RecordedCall, Span

CONV = RangeKey("stem", "convolution", "forward")
NORM = RangeKey("norm", "normalisation", "backward")


def test_layers_begin_where_the_operators_do(tmp_path):
    exported = {
        "traceEvents": [
            {"ph": "X", "pid": 9, "tid": 9, "name": "aten::mm", "ts": 500.0, "dur": 3},
            {"ph": "M", "pid": 9, "name": "process_labels", "args": {"labels": "CPU"}},
            {"name": "no phase"},
        ]
    }
    spans = [Span(CONV, 0.001, 0.002), Span(NORM, 0.004, 0.001)]
    events = json.loads(trace.write_trace(tmp_path, spans, exported).read_text())["traceEvents"]
    layers = [event for event in events if event["ph"] == "X" and event["pid"] != 9]
    assert [(event["name"], event["ts"], event["dur"]) for event in layers] == [
        ("stem", 1500, 2000),
        ("norm backward", 4500, 1000),
    ]
    assert all("ph" in event for event in events)


def test_labels_name_the_kind_and_direction_if_needed():
    assert range_label(CONV) == "stem"
    assert range_label(CONV._replace(kind="map")) == "stem (map)"
    assert range_label(NORM._replace(name="loss", kind="loss")) == "loss backward"


class Event:
    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock += 2.0
        self.at = Event.clock

    def elapsed_time(self, other):
        return other.at - self.at


class Cuda:
    Event = Event

    @staticmethod
    def synchronize():
        pass


def test_device_moments_become_seconds_since_the_first():
    ticks = DeviceTicks(Cuda)
    recorded = RecordedCall([ticks(), ticks(), ticks()], [0, 1, -1], [CONV])
    assert ticks.resolve(recorded).times == [0, 0.002, 0.004]


class Nvtx_:
    def __init__(self):
        self.said = []

    def range_push(self, name):
        self.said.append(name)

    def range_pop(self):
        self.said.append("pop")


def test_nvtx_receives_every_range():
    nvtx = Nvtx_()
    ranges = RangeRecorder(listener=NvtxListener(nvtx))
    ranges.begin()
    ranges.wrap(lambda: None, CONV)()
    ranges.end()
    assert nvtx.said == ["host", "stem", "pop", "pop"]


def test_torchs_profiler_receives_forward_layers_only():
    opened = []

    class Record:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            opened.append(self.name)

        def __exit__(self, *_):
            opened.append("end")

    ranges = RangeRecorder(listener=ProfilerListener(Record))
    ranges.begin()
    ranges.wrap(lambda: None, CONV)()
    ranges.wrap(lambda: None, NORM)()
    ranges.end()
    assert opened == ["stem", "end"]
