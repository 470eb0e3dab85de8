"""Files are read in a child process that may crash or hang."""

import os
import signal
import time

import numpy as np
import pytest

from harness.errors import BadInput
from harness.events import child_reader, open_events
from harness.events.child_reader import open_in_child
from harness.events.native import EventWriter, NativeSet


@pytest.fixture
def path(tmp_path, some_events):
    path = tmp_path / "events.h5"
    with EventWriter(path, 32, 3, "test") as writer:
        for event in some_events:
            writer.append(event)
    return path


def test_events_are_those_of_the_file(path, some_events):
    with open_in_child(path) as events, open_events(path) as direct:
        assert (events.name, events.sizes, len(events)) == (str(path), (32,), len(some_events))
        assert events.sha256 == direct.sha256
        for event, own in zip(events, direct, strict=True):
            assert event.name == own.name
            assert np.array_equal(event.voxels, own.voxels)
            assert np.array_equal(event.energies, own.energies)


def test_the_sample_needs_no_child_process():
    assert not isinstance(open_in_child("sample", size=192), child_reader.ChildSet)


def test_a_refusal_is_the_same_sentence(path):
    with pytest.raises(BadInput, match="32 px, not of 64"):
        open_in_child(path, size=64)
    with pytest.raises(BadInput, match="is no file"):
        open_in_child(path.parent / "none")


def crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(*_):
    time.sleep(100)


def devour(*_):
    return [b"x" * (1 << 33)]


def serve_with(monkeypatch, broken):
    """Let the child process read events by a broken function."""
    monkeypatch.setattr(child_reader, "_serve", BrokenServer(broken))


class BrokenServer:
    """The child's function, with a reader that fails; it travels to the child by name."""

    def __init__(self, broken):
        self.broken = broken

    def __call__(self, *arguments):
        NativeSet.read = self.broken
        from harness.events.child_reader import _serve

        _serve(*arguments)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (crash, r"events 0 to 0 cannot be read, the reader died of signal 11 \(SIGSEGV\)"),
        (hang, "events 0 to 0 could not be read within 1 s"),
        (devour, "reader died of exit code 1|MemoryError"),
    ],
)
def test_a_broken_reader_is_one_sentence(path, monkeypatch, broken, words):
    serve_with(monkeypatch, broken)
    with open_in_child(path, seconds=20, memory_bytes=4 << 30) as events:
        events._seconds = 1 if broken is hang else 20
        with pytest.raises(BadInput, match=words):
            events[0]
        with pytest.raises(BadInput, match="died of"):
            events[0]
