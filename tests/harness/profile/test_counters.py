"""Counters of the processor: what is asked of the kernel, and what happens if it refuses."""

import os
import struct

import pytest

from harness.profile import counters


def test_the_request_is_of_this_process_and_disabled_at_first():
    request = counters.attributes(counters.EVENTS["instructions"])
    assert len(request) == 112
    kind, size, event, _, _, form, flags = struct.unpack_from("IIQQQQQ", request)
    assert (kind, size, event, form) == (0, 112, 1, 3)
    assert flags == 0b1100011


def test_counts_of_events_that_took_turns_are_scaled():
    assert counters.scaled(100, 10, 5) == 200
    assert counters.scaled(0, 10, 0) == 0


def test_a_refusal_is_one_sentence_and_leaves_nothing_open():
    opened = []

    def open_(event, thread):
        if opened:
            raise counters.NoCounters("not here")
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    with pytest.raises(counters.NoCounters, match="not here"):
        counters.count(lambda: None, open_)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


def test_the_kernel_counts_or_says_why_not():
    try:
        handle = counters.open_event(counters.EVENTS["instructions"], 0)
    except counters.NoCounters as error:
        pytest.skip(str(error))
    os.close(handle)
    assert counters.count(lambda: sum(range(1000)))["instructions"] > 1000


def test_every_thread_is_counted():
    assert os.getpid() in counters.threads()
