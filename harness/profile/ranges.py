"""Recorder of the begin and end of ranges, such as layers, and the self time of each range."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

Function = Callable[..., Any]


class RangeKey(NamedTuple):
    """Identity of a range: see ``harness.profile.profile.LayerProfile``."""

    name: str
    kind: str
    direction: str


HOST = "host"
INSTRUMENT = RangeKey("instrument", HOST, "forward")
"""Work of the instruments, which counts for no layer."""

LEAVE = -1
_EXTEND = -2
_AGAIN = 1 << 20
"""Added to the code of a range that continues an earlier one and is not a call of its own."""


def kind_words(kind: str, direction: str) -> str:
    """Return the description of all layers of a kind, in one direction."""
    if kind == HOST:
        return f"between layers, {direction}"
    return kind if direction == "step" else f"{kind}, {direction}"


class RangeListener(Protocol):
    """Receives the begin and end of ranges, for another profiler, for example NVTX."""

    def enter(self, key: RangeKey) -> None:
        """Receive the begin of a range."""
        ...

    def leave(self) -> None:
        """Receive the end of the innermost open range."""
        ...


class RecordedCall(NamedTuple):
    """The ranges of one call.

    Attributes
    ----------
    times : sequence of float
        Seconds of each boundary.
    codes : sequence of int
        At each boundary, the code of the range that began, or ``LEAVE``.
    keys : sequence of RangeKey
        By code.
    """

    times: Sequence[float]
    codes: Sequence[int]
    keys: Sequence[RangeKey]

    @property
    def seconds(self) -> float:
        """Seconds of the whole call."""
        return self.times[-1] - self.times[0]


class RangeRecorder:
    """Recorder of the ranges of one call at a time.

    Time outside of layers counts for the host, in the direction that was set last.

    Parameters
    ----------
    tick : callable
        Returns the time in seconds, or an object from which it is resolved later.
    sequence : callable
        Returns the sequence number of the next autograd node, which maps nodes to ranges.
    listener : RangeListener, optional
        Receives every range.
    """

    def __init__(
        self,
        tick: Callable[[], Any] = time.perf_counter,
        sequence: Callable[[], int] = lambda: 0,
        listener: RangeListener | None = None,
    ) -> None:
        self._tick = tick
        self._sequence = sequence
        self._listener = listener
        self._times: list[Any] = []
        self._codes: list[int] = []
        self._sequences: list[int] = []
        self._stack: list[int] = []
        self._keys: list[RangeKey] = []
        self._known: dict[RangeKey, int] = {}

    def code(self, key: RangeKey) -> int:
        """Return the code of a key."""
        if key not in self._known:
            self._known[key] = len(self._keys)
            self._keys.append(key)
        return self._known[key]

    def begin(self) -> None:
        """Begin a call, with the direction forward."""
        for values in (self._times, self._codes, self._sequences, self._stack):
            values.clear()
        self.enter(self.code(RangeKey(HOST, HOST, "forward")))

    def set_direction(self, direction: str) -> None:
        """Set the direction for which time between layers counts."""
        self.leave()
        self.enter(self.code(RangeKey(HOST, HOST, direction)))

    def end(self) -> RecordedCall:
        """End the call and return its ranges."""
        self.leave()
        return RecordedCall(self._times.copy(), self._codes.copy(), tuple(self._keys))

    def enter(self, code: int, again: int = 0) -> None:
        """Begin a range.

        Parameters
        ----------
        code : int
            Of the range.
        again : int
            ``_AGAIN`` for a range that continues an earlier one.
        """
        self._stack.append(code)
        self._codes.append(code + again)
        if self._listener is not None:
            self._listener.enter(self._keys[code])
        self._sequences.append(self._sequence())
        self._times.append(self._tick())

    def leave(self) -> None:
        """End the innermost open range."""
        self._times.append(self._tick())
        self._sequences.append(self._sequence())
        if self._listener is not None:
            self._listener.leave()
        self._codes.append(LEAVE)
        self._stack.pop()

    def extend(self, code: int) -> None:
        """Count the time since the last boundary for a range that has ended."""
        self._times.append(self._tick())
        self._sequences.append(0)
        self._codes.append(_EXTEND - code)

    def wrap(self, function: Function, key: RangeKey) -> Function:
        """Return the function, wrapped in a range."""
        return self._in(function, self.code(key))

    def within(self, kind: str) -> Callable[[Function], Function]:
        """Return a decorator: calls are ranges of ``kind`` within the layer that makes them."""

        def decorate(function: Function) -> Function:
            def ranged(*arguments: Any, **named: Any) -> Any:
                key = self._keys[self._stack[-1]]
                self.enter(self.code(key._replace(kind=kind)))
                try:
                    return function(*arguments, **named)
                finally:
                    self.leave()

            return ranged

        return decorate

    def deferred(self, function: Function) -> Function:
        """Return the function, wrapped in a range of the layer that runs now."""
        return self._in(function, self._stack[-1], _AGAIN)

    def recorder(self) -> LayerRecorder:
        """Return a recorder for the layer that runs now."""
        forth = self._stack[-1]
        return LayerRecorder(
            self, forth, self.code(self._keys[forth]._replace(direction="backward"))
        )

    @property
    def accepts_intervals(self) -> bool:
        """Whether a range can be added after it has ended."""
        return self._tick is time.perf_counter and self._listener is None

    def add_interval(self, code: int, begin: float, end: float, again: int = 0) -> None:
        """Add a range that has ended, after all recorded ones."""
        self._times += (begin, end)
        self._codes += (code + again, LEAVE)
        self._sequences += (self._sequence(),) * 2

    def outside_layers(self, function: Function) -> Function:
        """Return the function, wrapped in a range of the host."""
        return self._in(function, self.code(RangeKey(HOST, HOST, "forward")))

    def owners(self) -> Callable[[int], int]:
        """Return the function from an autograd node's number to the code of the creating range."""
        sequences = self._sequences.copy()
        tops = _innermost(self._codes)

        def owner(sequence: int) -> int:
            place = bisect_right(sequences, sequence) - 1
            return tops[place] if place >= 0 else LEAVE

        return owner

    def key(self, code: int) -> RangeKey:
        """Return the key of a code."""
        return self._keys[code]

    def _in(self, function: Function, code: int, again: int = 0) -> Function:
        enter, leave = self.enter, self.leave

        def ranged(*arguments: Any, **named: Any) -> Any:
            enter(code, again)
            try:
                return function(*arguments, **named)
            finally:
                leave()

        return ranged


class LayerRecorder:
    """Recorder of one layer's work that is done after the layer's call has returned."""

    def __init__(self, ranges: RangeRecorder, forth: int, back: int) -> None:
        self._ranges = ranges
        self._forth, self._back = forth, back

    @property
    def accepts_intervals(self) -> bool:
        """Whether intervals can be added after they have ended."""
        return self._ranges.accepts_intervals

    def record_call(self, function: Function, *, backward: bool) -> None:
        """Call a function in a range."""
        self._ranges.enter(*self._code(backward))
        try:
            function()
        finally:
            self._ranges.leave()

    def record_interval(self, begin: float, end: float, *, backward: bool) -> None:
        """Add a range that has ended."""
        code, again = self._code(backward)
        self._ranges.add_interval(code, begin, end, again)

    def _code(self, backward: bool) -> tuple[int, int]:
        return (self._back, 0) if backward else (self._forth, _AGAIN)


def _innermost(codes: Sequence[int]) -> list[int]:
    """Return the innermost open range after each boundary; ``LEAVE`` where there is none."""
    stack: list[int] = []
    tops = []
    for code in codes:
        if code == LEAVE:
            stack.pop()
        elif code >= 0:
            stack.append(code % _AGAIN)
        tops.append(stack[-1] if stack else LEAVE)
    return tops


def interval_keys(recorded: RecordedCall) -> list[RangeKey]:
    """Return the range for which the time between each boundary and the next counts."""
    tops = _innermost(recorded.codes)
    found = []
    for place, code in enumerate(recorded.codes[1:]):
        top = _EXTEND - code if code <= _EXTEND else tops[place]
        found.append(recorded.keys[top] if top != LEAVE else INSTRUMENT)
    return found


class SelfTime(NamedTuple):
    """Time of a range in one call, without the ranges inside it, and its number of calls."""

    seconds: float
    calls: int


def self_times(recorded: RecordedCall) -> dict[RangeKey, SelfTime]:
    """Return the self time of each range; they sum to the time of the call.

    Gaps between layers are ranges of the host. The time of the instrument itself is left out.
    """
    seconds: dict[int, float] = defaultdict(float)
    calls: Counter[int] = Counter()
    tops = _innermost(recorded.codes)
    before, top = recorded.times[0], LEAVE
    for moment, code, after in zip(recorded.times, recorded.codes, tops, strict=True):
        if code <= _EXTEND:
            seconds[_EXTEND - code] += moment - before
        elif top != LEAVE:
            seconds[top] += moment - before
        if code >= 0:
            calls[code % _AGAIN] += code < _AGAIN
        before, top = moment, after
    return {
        recorded.keys[code]: SelfTime(seconds[code], count)
        for code, count in calls.items()
        if recorded.keys[code] != INSTRUMENT
    }


class Span(NamedTuple):
    """A range with its begin and end, in seconds since the begin of the call."""

    key: RangeKey
    begin: float
    seconds: float


def spans(recorded: RecordedCall) -> list[Span]:
    """Return the ranges of a call for a trace, without those of the host."""
    found: list[Span] = []
    open_: list[tuple[int, float]] = []
    last: dict[int, int] = {}
    for moment, code in zip(recorded.times, recorded.codes, strict=True):
        if code >= 0:
            open_.append((code % _AGAIN, moment))
        elif code == LEAVE:
            began, begin = open_.pop()
            if recorded.keys[began].name not in (HOST, INSTRUMENT.name):
                last[began] = len(found)
                found.append(Span(recorded.keys[began], begin - recorded.times[0], moment - begin))
        elif all(_EXTEND - code != began for began, _ in open_) and _EXTEND - code in last:
            place = last[_EXTEND - code]
            span = found[place]
            found[place] = span._replace(seconds=moment - recorded.times[0] - span.begin)
    return found
