"""Notes when layers start and end, as cheaply as possible, and adds up what each spent itself."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

Function = Callable[..., Any]


class Key(NamedTuple):
    """What a range is of: see ``harness.profile.profile.Layer``."""

    name: str
    kind: str
    direction: str


HOST = "host"
PAUSE = Key("instrument", HOST, "forward")
"""The instrument's own work, which counts for nobody."""

LEAVE = -1
_EXTEND = -2
_AGAIN = 1 << 20
"""Added to the code of a range that goes on later: it is no call of its own."""


class Announcer(Protocol):
    """Tells another profiler of ranges, NVTX for example."""

    def enter(self, key: Key) -> None:
        """A range has begun."""
        ...

    def leave(self) -> None:
        """The last range has ended."""
        ...


class Pass(NamedTuple):
    """What was noted in one call: at ``times[i]`` range ``codes[i]`` began, or one ended."""

    times: Sequence[float]
    codes: Sequence[int]
    keys: Sequence[Key]


class Ranges:
    """Ranges of one call after the other.

    Time that no layer spends counts for the host, in the direction that was set last.

    Parameters
    ----------
    tick : callable
        The moment, in seconds; or an object that ``Pass`` can be resolved from later.
    sequence : callable
        The number that autograd will give to the next node, so that nodes are told whose they are.
    announcer : Announcer, optional
        Is told of every range.
    """

    def __init__(
        self,
        tick: Callable[[], Any] = time.perf_counter,
        sequence: Callable[[], int] = lambda: 0,
        announcer: Announcer | None = None,
    ) -> None:
        self._tick = tick
        self._sequence = sequence
        self._announcer = announcer
        self._times: list[Any] = []
        self._codes: list[int] = []
        self._sequences: list[int] = []
        self._stack: list[int] = []
        self._keys: list[Key] = []
        self._known: dict[Key, int] = {}

    def code(self, key: Key) -> int:
        """Return the number of a key."""
        if key not in self._known:
            self._known[key] = len(self._keys)
            self._keys.append(key)
        return self._known[key]

    def begin(self) -> None:
        """Start a call, forward."""
        for values in (self._times, self._codes, self._sequences, self._stack):
            values.clear()
        self.enter(self.code(Key(HOST, HOST, "forward")))

    def turn(self, direction: str) -> None:
        """Count time between layers for another direction from now on."""
        self.leave()
        self.enter(self.code(Key(HOST, HOST, direction)))

    def end(self) -> Pass:
        """End a call."""
        self.leave()
        return Pass(self._times.copy(), self._codes.copy(), tuple(self._keys))

    def enter(self, code: int, again: int = 0) -> None:
        """Begin a range, or go on with it."""
        self._stack.append(code)
        self._codes.append(code + again)
        if self._announcer is not None:
            self._announcer.enter(self._keys[code])
        self._sequences.append(self._sequence())
        self._times.append(self._tick())

    def leave(self) -> None:
        """End the range that began last."""
        self._times.append(self._tick())
        self._sequences.append(self._sequence())
        if self._announcer is not None:
            self._announcer.leave()
        self._codes.append(LEAVE)
        self._stack.pop()

    def extend(self, code: int) -> None:
        """Count the time since the last mark for a range that has ended."""
        self._times.append(self._tick())
        self._sequences.append(0)
        self._codes.append(_EXTEND - code)

    def wrap(self, function: Function, key: Key) -> Function:
        """Return the function in a range of its own."""
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
        """Return the function in a range of the layer that runs now."""
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
        return self._tick is time.perf_counter and self._announcer is None

    def add_interval(self, code: int, begin: float, end: float, again: int = 0) -> None:
        """Add a range that has ended, after all that were noted."""
        self._times += (begin, end)
        self._codes += (code + again, LEAVE)
        self._sequences += (self._sequence(),) * 2

    def outside_layers(self, function: Function) -> Function:
        """Return the function in a range of the host."""
        return self._in(function, self.code(Key(HOST, HOST, "forward")))

    def owners(self) -> Callable[[int], int]:
        """Return what maps the number of an autograd node to the code of the range it began in."""
        sequences = self._sequences.copy()
        tops = _tops(self._codes)

        def owner(sequence: int) -> int:
            place = bisect_right(sequences, sequence) - 1
            return tops[place] if place >= 0 else LEAVE

        return owner

    def key(self, code: int) -> Key:
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
    """Ranges of one layer's work, where it is not done in the layer's call."""

    def __init__(self, ranges: Ranges, forth: int, back: int) -> None:
        self._ranges = ranges
        self._forth, self._back = forth, back

    @property
    def accepts_intervals(self) -> bool:
        """Whether it is enough to tell the times afterwards."""
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


def _tops(codes: Sequence[int]) -> list[int]:
    """Return the innermost open range after each mark; ``LEAVE`` where there is none."""
    stack: list[int] = []
    tops = []
    for code in codes:
        if code == LEAVE:
            stack.pop()
        elif code >= 0:
            stack.append(code % _AGAIN)
        tops.append(stack[-1] if stack else LEAVE)
    return tops


def intervals(noted: Pass) -> list[Key]:
    """Return whose the time between each mark and the next is."""
    tops = _tops(noted.codes)
    found = []
    for place, code in enumerate(noted.codes[1:]):
        top = _EXTEND - code if code <= _EXTEND else tops[place]
        found.append(noted.keys[top] if top != LEAVE else PAUSE)
    return found


class Spent(NamedTuple):
    """What one range spent in one call, without the ranges inside it."""

    seconds: float
    calls: int


def spent(noted: Pass) -> dict[Key, Spent]:
    """Add up the time that each range spent itself; all of them sum to the call's time.

    Gaps between layers are ranges of the host. What the instrument took for itself is left out.
    """
    seconds: dict[int, float] = defaultdict(float)
    calls: Counter[int] = Counter()
    tops = _tops(noted.codes)
    before, top = noted.times[0], LEAVE
    for moment, code, after in zip(noted.times, noted.codes, tops, strict=True):
        if code <= _EXTEND:
            seconds[_EXTEND - code] += moment - before
        elif top != LEAVE:
            seconds[top] += moment - before
        if code >= 0:
            calls[code % _AGAIN] += code < _AGAIN
        before, top = moment, after
    return {
        noted.keys[code]: Spent(seconds[code], count)
        for code, count in calls.items()
        if noted.keys[code] != PAUSE
    }


class Span(NamedTuple):
    """One range from begin to end, in seconds since the call began."""

    key: Key
    begin: float
    seconds: float


def spans(noted: Pass) -> list[Span]:
    """List the ranges of a call, those of the host left out, as a trace shows them."""
    found: list[Span] = []
    open_: list[tuple[int, float]] = []
    last: dict[int, int] = {}
    for moment, code in zip(noted.times, noted.codes, strict=True):
        if code >= 0:
            open_.append((code % _AGAIN, moment))
        elif code == LEAVE:
            began, begin = open_.pop()
            if noted.keys[began].name not in (HOST, PAUSE.name):
                last[began] = len(found)
                found.append(Span(noted.keys[began], begin - noted.times[0], moment - begin))
        elif all(_EXTEND - code != began for began, _ in open_) and _EXTEND - code in last:
            place = last[_EXTEND - code]
            span = found[place]
            found[place] = span._replace(seconds=moment - noted.times[0] - span.begin)
    return found
