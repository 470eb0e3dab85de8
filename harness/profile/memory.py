"""Where the memory of one call goes: by layer and kind, at every border of a range.

On the CPU passes that make the same marks are laid over each other. The kernel alone says what a
call takes (as records have it); torch's profiler says when each of its blocks lived; the C library
and the kernel say at every mark what is in use and what is resident. What is in use beyond torch's
blocks is the engine's own, its maps most of all. All this happens in a process whose C library
returns freed memory at once. An ordinary process takes more: what its allocator keeps.
"""

from __future__ import annotations

import ctypes
import gc
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.instruments.memory import ResidentMemory, TorchMemory
from harness.profile.instrument import watching
from harness.profile.profile import Held, Memory
from harness.profile.ranges import HOST, PAUSE, Key, Pass, Ranges, intervals
from harness.run.failures import Failed
from harness.run.workload import Workload

Label = tuple[str, str]
"""A layer's name, and one of ``profile.MEMORY_KINDS``."""

REPEATS = 3
"""Calls of which the median counts: the allocator's state differs from one to the next."""

ALLOCATOR = "allocator"
"""Who holds what was freed and not given back to the system."""

_RETURN = {-3: 1 << 16, -1: 1 << 17}
"""``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD`` of glibc, with small values for both."""

SNAPSHOT = "memory.pickle"
_BORDER = "sscn-bench border"


class Block(NamedTuple):
    """One allocation of torch's: when it was made and freed, counted in marks.

    ``died`` is None for a block that outlives the call.
    """

    size: int
    born: int
    died: int | None
    gradient: bool = False


class Marks(NamedTuple):
    """What was seen at each mark of a pass.

    Attributes
    ----------
    seconds : sequence of float
        Since the first mark, without the time to look.
    resident : sequence of int
        Bytes of the process.
    highest : sequence of int
        Most bytes since the mark before.
    in_use : sequence of int
        Bytes that the C library has given out.
    """

    seconds: Sequence[float]
    resident: Sequence[int]
    highest: Sequence[int]
    in_use: Sequence[int]


def ordinary(subject: Workload, call: Callable[[], Any]) -> tuple[int, int]:
    """Return resident bytes before a call and at its peak, with the allocator as it is.

    Raises
    ------
    Failed
        If the kernel does not let the process reset its peak.
    """
    watched = [_resident(subject, call) for _ in range(REPEATS)]
    if not watched[0]["rss_peak_reset"]:
        raise Failed("unavailable", "the kernel does not let a process reset its peak of memory")
    watched.sort(key=lambda found: found["peak_rss_bytes"] - found["baseline_bytes"])
    middle = watched[REPEATS // 2]
    return middle["baseline_bytes"], middle["peak_rss_bytes"]


def return_freed() -> None:
    """Have the C library return freed memory at once, so that what is resident is in use.

    It uses free parts of its heap first: this has to come before they are made.
    """
    library = ctypes.CDLL(None)
    for parameter, size in _RETURN.items():
        library.mallopt(parameter, size)


def measure(
    subject: Workload, call: Callable[[], Any], known: tuple[int, int]
) -> tuple[Memory, list[str]]:
    """Return where a call's memory goes on the CPU, and notes of what could not be found out.

    Parameters
    ----------
    subject : Workload
        Built, and called, after ``return_freed``.
    call : callable
        The subject's call.
    known : tuple of int
        What ``ordinary`` found in another process, whose allocator keeps what is freed.
    """
    notes = []
    baseline, peak = known
    before, highest = ordinary(subject, call)
    passes = [_marked(subject, call) for _ in range(REPEATS)]
    noted, blocks = _ledger(subject, call)  # torch's profiler disturbs the memory after it
    if any(again.codes != noted.codes for again, _ in passes):
        notes.append("two passes over the same call differ: no memory by layer")
        return Memory(baseline, peak, 0), notes
    several = sorted(
        (marks for _, marks in passes), key=lambda marks: max(marks.highest) - marks.resident[0]
    )
    marks = several[REPEATS // 2]
    held = at_peak(intervals(noted), blocks, marks)
    if (kept := (peak - baseline) - (highest - before)) > 0:
        held = sorted([*held, Held(ALLOCATOR, "other", kept)], key=lambda entry: -entry.bytes)
    timeline = tuple(
        (round(seconds, 6), most - marks.resident[0])
        for seconds, most in zip(marks.seconds, marks.highest, strict=True)
    )
    explained = sum(entry.bytes for entry in held)
    return Memory(baseline, peak, explained, tuple(held), timeline), notes


def kind_of(key: Key, *, outlives: bool, gradient: bool = False) -> str:
    """Return what a block is that was made in a range."""
    if gradient:
        return "gradient"
    if key.kind in ("map", "input"):
        return "map"
    if key.kind == "optimiser":
        return "optimiser"
    if key.name in (HOST, PAUSE.name):
        return "other"
    if not outlives:
        return "workspace"
    return "gradient" if key.direction == "backward" else "activation"


def at_peak(keys: Sequence[Key], blocks: Iterable[Block], marks: Marks) -> list[Held]:
    """Return what was held at the peak of resident memory, largest first.

    Parameters
    ----------
    keys : sequence of Key
        Whose each interval between two marks is.
    blocks : iterable of Block
        Of torch.
    marks : Marks
        One more than there are intervals.
    """
    born: dict[int, list[Block]] = defaultdict(list)
    died: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        born[block.born].append(block)
        if block.died is not None:
            died[block.died].append(block)
    peak = max(range(len(keys)), key=lambda place: marks.highest[place + 1])
    account = Account()
    for place in range(peak):
        key = keys[place]
        account.interval(
            key,
            [(_label(keys, block), block.size) for block in born[place]],
            [(_label(keys, block), block.size) for block in died[place]],
            marks.in_use[place + 1] - marks.in_use[place],
            marks.resident[place + 1] - marks.resident[place],
        )
    rest = marks.highest[peak + 1] - marks.resident[peak]
    for block in born[peak]:
        if block.died != peak and rest > 0:
            account.add(_label(keys, block), min(rest, block.size))
            rest -= min(rest, block.size)
    account.add((keys[peak].name, kind_of(keys[peak], outlives=False)), max(rest, 0))
    return account.held()


def _label(keys: Sequence[Key], block: Block) -> Label:
    key = keys[block.born]
    kind = kind_of(key, outlives=block.died != block.born, gradient=block.gradient)
    return key.name, kind


class Account:
    """Adds up bytes by layer and kind so that they always sum to what is resident."""

    def __init__(self) -> None:
        self._bytes: Counter[Label] = Counter()
        self._own: list[tuple[Label, int]] = []
        self._kept: list[tuple[Label, int]] = []
        self._untouched: list[tuple[Label, int]] = []

    def add(self, label: Label, number: int) -> None:
        """Count bytes for a layer."""
        self._bytes[label] += number

    def interval(
        self,
        key: Key,
        born: Sequence[tuple[Label, int]],
        died: Sequence[tuple[Label, int]],
        in_use: int,
        resident: int,
    ) -> None:
        """Count one interval.

        Parameters
        ----------
        key : Key
            Whose it is.
        born, died : sequence of (Label, int)
            Torch's blocks.
        in_use, resident : int
            By how many bytes these have grown.
        """
        for label, size in born:
            self._bytes[label] += size
        for label, size in died:
            self._bytes[label] -= size
        blocks = sum(size for _, size in born) - sum(size for _, size in died)
        kind = "map" if key.kind in ("map", "input", "convolution") else "workspace"
        self._move(self._own, (key.name, kind), in_use - blocks)
        kept = resident - in_use
        # Freed blocks of others stay with the allocator; the rest are this layer's temporaries.
        if kept > 0:
            kept = self._take(self._untouched, kept, -1)
            others = min(kept, sum(size for _, size in died))
            self._move(self._kept, (key.name, "other"), others)
            self._move(self._kept, (key.name, kind_of(key, outlives=False)), kept - others)
        elif kept < 0:
            missing = self._take(self._kept, -kept, 1)
            largest = max(born, key=lambda pair: pair[1], default=((key.name, "other"), 0))[0]
            if missing:
                self._untouched.append((largest, missing))
                self._bytes[largest] -= missing

    def held(self) -> list[Held]:
        """Return all that counts, largest first."""
        found = [Held(name, kind, size) for (name, kind), size in self._bytes.items() if size > 0]
        return sorted(found, key=lambda entry: -entry.bytes)

    def left(self, label: Label, more: int) -> None:
        """Count what an interval left behind on balance; what goes came last."""
        self._move(self._own, label, more)

    def _move(self, stack: list[tuple[Label, int]], label: Label, number: int) -> None:
        """Put bytes on a stack, or take them off; there may be too few, from before the call."""
        if number > 0:
            stack.append((label, number))
            self._bytes[label] += number
        elif number < 0:
            self._bytes[label] -= self._take(stack, -number, 1)

    def _take(self, stack: list[tuple[Label, int]], number: int, sign: int) -> int:
        """Take bytes off a stack, the last first; return how many there were not."""
        while stack and number > 0:
            label, size = stack.pop()
            taken = min(size, number)
            self._bytes[label] -= sign * taken
            if size > taken:
                stack.append((label, size - taken))
            number -= taken
        return number


def _fresh(subject: Workload) -> None:
    """Return to the state before a first step: no gradients, no state of the optimiser."""
    subject.optimizer.zero_grad(set_to_none=True)
    subject.reset()
    gc.collect()


def _resident(subject: Workload, call: Callable[[], Any]) -> dict[str, Any]:
    _fresh(subject)
    return ResidentMemory().measure(call)


@contextmanager
def _without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _ledger(subject: Workload, call: Callable[[], Any]) -> tuple[Pass, list[Block]]:
    """Follow torch's blocks through a call."""
    _fresh(subject)

    def tick() -> float:
        with torch.profiler.record_function(_BORDER):
            return 0.0

    ranges = Ranges(tick, torch.autograd._get_sequence_nr)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _without_collector(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profiler,
        watching(subject, ranges),
    ):
        ranges.begin()
        call()
        noted = ranges.end()
    result = profiler.profiler
    assert result is not None and result.kineto_results is not None
    gradients = {
        parameter.grad.untyped_storage().data_ptr()
        for parameter in subject.network.parameters()
        if parameter.grad is not None
    }
    return noted, blocks_of(_events(result.kineto_results.experimental_event_tree()), gradients)


def _events(tree: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
    """Yield (address, bytes) of torch's allocations in order, None for a border."""
    allocation = torch._C._profiler._EventType.Allocation
    found: list[tuple[int, tuple[int, int] | None]] = []
    todo = list(tree)
    while todo:
        event = todo.pop()
        todo += event.children
        kind, fields = event.typed
        if kind == allocation:
            found.append((event.start_time_ns, (fields.ptr, fields.alloc_size)))
        elif event.name == _BORDER:
            found.append((event.start_time_ns, None))
    found.sort(key=lambda pair: pair[0])
    return (event for _, event in found)


def blocks_of(events: Iterable[tuple[int, int] | None], gradients: set[int]) -> list[Block]:
    """Put allocations and deallocations together.

    Parameters
    ----------
    events : iterable
        (address, bytes), negative for a deallocation; None for a mark.
    gradients : set of int
        Addresses of the parameters' gradients when the call is over.
    """
    found: list[Block] = []
    live: dict[int, Block] = {}
    place = -1
    for event in events:
        if event is None:
            place += 1
            continue
        address, size = event
        if place < 0:
            continue
        if size > 0:
            live[address] = Block(size, place, None)
        elif address in live:  # what the call before it left behind is not this call's
            found.append(live.pop(address)._replace(died=place))
    found += [block._replace(gradient=address in gradients) for address, block in live.items()]
    return found


class _Statistics(ctypes.Structure):
    """``struct mallinfo2`` of glibc: ``hblkhd`` is its fifth field, ``uordblks`` its eighth."""

    _fields_ = [(f"field{place}", ctypes.c_size_t) for place in range(10)]

    @property
    def given_out(self) -> int:
        """Bytes in mapped blocks and in the heap."""
        return self.field4 + self.field7


def _in_use() -> Callable[[], int]:
    """Return what asks the C library how many bytes it has given out; 0 where it cannot say."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return lambda: 0
    ask.restype = _Statistics

    def in_use() -> int:
        return ask().given_out

    return in_use


def _marked(subject: Workload, call: Callable[[], Any]) -> tuple[Pass, Marks]:
    """Ask the kernel and the C library at every mark of a call."""
    _fresh(subject)
    seconds, resident, highest, used = array("d"), array("q"), array("q"), array("q")
    in_use = _in_use()
    process = ResidentMemory()
    looking = 0.0

    def tick() -> float:
        nonlocal looking
        begin = time.perf_counter()
        highest.append(process.status("VmHWM"))
        resident.append(process.status("VmRSS"))
        used.append(in_use())
        seconds.append(begin - looking)
        process.reset_peak()
        looking += time.perf_counter() - begin
        return 0.0

    ranges = Ranges(tick, torch.autograd._get_sequence_nr)
    noted: list[Pass] = []

    def whole() -> None:
        ranges.begin()
        call()
        noted.append(ranges.end())

    with _without_collector(), watching(subject, ranges):
        process.measure(whole)
    highest[0] = resident[0]
    since = [moment - seconds[0] for moment in seconds]
    return noted[0], Marks(since, resident, highest, used)


def on_device(subject: Workload, call: Callable[[], Any], folder: Path) -> Memory:
    """Follow torch's allocator on the GPU, and leave a snapshot for its viewer."""
    cuda = torch.cuda
    _fresh(subject)
    cuda.synchronize()
    cuda.empty_cache()
    baseline = cuda.memory_allocated()
    peak = TorchMemory(cuda).measure(call)["torch_allocated_bytes"]
    _fresh(subject)
    cuda.memory._record_memory_history()
    call()
    cuda.synchronize()
    cuda.memory._dump_snapshot(str(folder / SNAPSHOT))
    cuda.memory._record_memory_history(enabled=None)
    _fresh(subject)
    seconds, held, highest = array("d"), array("q"), array("q")

    def tick() -> float:
        highest.append(cuda.max_memory_allocated())
        held.append(cuda.memory_allocated())
        cuda.reset_peak_memory_stats()
        seconds.append(time.perf_counter())
        return 0.0

    ranges = Ranges(tick, torch.autograd._get_sequence_nr)
    with watching(subject, ranges):
        ranges.begin()
        call()
        noted = ranges.end()
    highest[0] = held[0]
    since = [moment - seconds[0] for moment in seconds]
    found = on_balance(intervals(noted), Marks(since, held, highest, held))
    timeline = tuple(
        (round(moment, 6), most - held[0]) for moment, most in zip(since, highest, strict=True)
    )
    explained = sum(entry.bytes for entry in found)
    return Memory(baseline, peak, explained, tuple(found), timeline)


def on_balance(keys: Sequence[Key], marks: Marks) -> list[Held]:
    """Return what was held at the peak where only the sum is known at each mark.

    What a layer leaves behind is its own; what goes was left behind last.
    """
    peak = max(range(len(keys)), key=lambda place: marks.highest[place + 1])
    account = Account()
    for place in range(peak):
        more = marks.resident[place + 1] - marks.resident[place]
        label = keys[place].name, kind_of(keys[place], outlives=True)
        account.left(label, more)
    rest = marks.highest[peak + 1] - marks.resident[peak]
    account.add((keys[peak].name, kind_of(keys[peak], outlives=False)), max(rest, 0))
    return account.held()
