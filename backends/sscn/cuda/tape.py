"""Tapes: launches that are recorded with symbols in place of arrays, for a plan in C++."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, TypeAlias

import torch
from torch import Tensor
from triton.runtime import driver

from backends.sscn.cpu import processor
from backends.sscn.cuda import launching
from backends.sscn.cuda.launching import on_device_of_first
from backends.sscn.cuda.symbols import Extent, Formulas, Memory, Size, Symbol, cdiv
from backends.sscn.cuda.transposition import transpose_all
from backends.sscn.recording import Unplannable

ALIGNMENT = 256
"""Bytes at whose multiples arrays begin."""


class _Meaning(IntEnum):
    """Meaning of an argument; the same as ``Meaning`` in ``launches.cpp``."""

    NUMBER = 0
    ARRAY = 1
    BEFORE = 2
    GIVEN = 3
    ADDRESS = 4


_Array: TypeAlias = Symbol | Tensor
_Launch: TypeAlias = tuple[int, list[Extent], int, int, list[_Array | Extent]]
"""Function, grid, threads, shared memory and arguments."""

END = 1 << 40
"""After the last launch of a pass."""


class Tape:
    """Records launches.

    Parameters
    ----------
    formulas : Formulas
        The sizes of the plan.
    device : torch.device
        The GPU.
    constant : sequence of Tensor
        Tensors whose addresses stay as they are.
    before : Tape or None
        The pass before, to whose arrays this one refers.

    Attributes
    ----------
    tickets : Symbol or None
        Those of ``splitting.tickets``.
    """

    def __init__(
        self,
        formulas: Formulas,
        device: torch.device,
        constant: Sequence[Tensor],
        before: Tape | None = None,
    ) -> None:
        self.formulas = formulas
        self.device = device
        self.before = before
        # The first one is that of ``transpose``.
        self.launches: list[_Launch | None] = [None]
        self.addresses: dict[tuple[int, int], Tensor] = {}
        self.kept: list[Tensor] = []
        self._constant: set[int] = set()
        self.keep(constant)
        self._memories: list[Memory] = []
        self._known: dict[int, int] = {}
        self._weights: list[tuple[Tensor, bool, int]] = []
        self._transposed = Memory(0)
        self._given: int = 0 if before is None else before._given
        self.tickets: Symbol | None = None if before is None else before.tickets

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors whose addresses stay as they are; they live as long as the tape."""
        for each in tensors:
            self.kept.append(each)
            self._constant.add(id(each))

    def given(self, shape: tuple[Extent, ...], dtype: torch.dtype) -> Symbol:
        """Return an array whose address is given to each pass."""
        memory = Memory(0, self._given)
        self._given += 1
        return Symbol(self, memory, shape, dtype, self.device)

    def empty(self, shape: tuple[Extent, ...], dtype: torch.dtype) -> Symbol:
        """Return an array that a launch will write."""
        made = Symbol(self, Memory(0), shape, dtype, self.device)
        made.memory.size = made.numel() * dtype.itemsize
        return made

    def transposed(self, weight: Tensor, mirrored: bool) -> Symbol:
        """Return transposed weights; ``transpose`` launches what makes them, for all layers."""
        if id(weight) not in self._constant or not weight.is_contiguous():
            raise Unplannable("weights are converted for each pass")
        taps, rows, columns = weight.shape
        memory, bytes_of_values = self._transposed, weight.dtype.itemsize
        begin = int(memory.size)  # type: ignore[arg-type]
        self._weights.append((weight, mirrored, begin // bytes_of_values))
        memory.size = begin + cdiv(weight.numel() * bytes_of_values, ALIGNMENT) * ALIGNMENT
        shape = (taps, columns, rows)
        return Symbol(self, memory, shape, weight.dtype, self.device, offset=begin)

    def transpose(self) -> None:
        """Transpose all weights that launches use, before them."""
        if self._weights:
            memory = self._transposed
            last = memory.last
            weight, *_ = self._weights[0]
            transpose_all(self._weights, Symbol(self, memory, (1,), weight.dtype, self.device))
            memory.first, memory.last = 0, last
            self.launches[0] = self.launches.pop()

    def launch(
        self, kernel: Any, grid: Sequence[Extent], arguments: Sequence[Any], constants: Any
    ) -> None:
        """Record a launch."""
        compiled = launching.compiled(kernel, [_sample(each) for each in arguments], constants)
        number = len(self.launches)
        for position, each in enumerate(arguments):
            if isinstance(each, Symbol):
                memory = each.memory
                if each.tape is not self:
                    memory.last = END
                elif memory.last is not END:
                    memory.first = number if memory.first < 0 else memory.first
                    memory.last = number
            elif isinstance(each, Tensor):
                if id(each) not in self._constant:
                    raise Unplannable("weights are converted for each pass")
                self.addresses[number, position] = each
        sizes = [*grid, 1, 1][:3]
        self.launches.append(
            (compiled.function, sizes, compiled.threads, compiled.shared, [*arguments])
        )

    def listed(self, results: dict[int, int] | None = None) -> tuple[list[Any], list[Any]]:
        """Return arrays and launches for ``processor.LaunchPlan``.

        Parameters
        ----------
        results : dict, optional
            ``id`` of arrays that are given to the pass -> their first byte in the last address.
        """
        found = results or {}
        launches = [
            (
                function, [self.formulas.number(size) for size in grid], threads, shared,
                [self._argument(each, found) for each in arguments],
            )
            for function, grid, threads, shared, arguments in filter(None, self.launches)
        ]  # fmt: skip
        arrays = [
            (self.formulas.number(each.size), max(each.first, 0), each.last)
            for each in self._memories
        ]
        return arrays, launches

    def array(self, memory: Memory) -> int:
        """Return the number of an array that this tape places."""
        number = self._known.get(id(memory))
        if number is None:
            number = self._known[id(memory)] = len(self._memories)
            self._memories.append(memory)
        return number

    @property
    def results_address(self) -> int:
        """The number of the address of results, which follows all others that are given."""
        return self._given

    def _argument(self, value: Any, results: dict[int, int]) -> tuple[int, int, int]:
        if isinstance(value, Tensor):
            return _Meaning.ADDRESS, 0, value.data_ptr()
        if not isinstance(value, Symbol):
            return _Meaning.NUMBER, self.formulas.number(value), 0
        memory, offset = value.memory, value.offset
        if id(memory) in results:
            return _Meaning.GIVEN, self.results_address, results[id(memory)] + offset
        if memory.given >= 0:
            return _Meaning.GIVEN, memory.given, offset
        if value.tape is not self:
            return _Meaning.BEFORE, value.tape.array(memory), offset
        return _Meaning.ARRAY, self.array(memory), offset


def _sample(argument: Any) -> Any:
    """Return something of the type of an argument, for the compiler."""
    if isinstance(argument, Symbol):
        return argument.dtype
    return argument.formulas.value(argument.number) if isinstance(argument, Size) else argument


def current_stream(device: torch.device) -> int:
    """Return the driver's handle of the current stream of a GPU."""
    stream: int = driver.active.get_current_stream(device.index)
    return stream


@on_device_of_first
def run(
    like: Tensor,
    launched: processor.LaunchedPass,
    before: processor.LaunchedPass | None,
    base_before: int,
    given: Sequence[int],
    memory: Tensor | None = None,
) -> Tensor:
    """Launch a pass, and return the memory of its arrays, which may be given."""
    if memory is None:
        memory = like.new_empty(launched.bytes, dtype=torch.uint8)
    stream = current_stream(like.device)
    launched.run(memory.data_ptr(), before, base_before, given, stream)
    return memory
