"""Sizes and arrays of a plan: formulas of the numbers of sites, in place of numbers and tensors.

The functions that launch kernels take them as they take numbers and tensors. What they launch is
then recorded in a ``Tape`` instead of run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, NoReturn, TypeAlias

import torch

from backends.sscn.recording import Unplannable


class Operation(IntEnum):
    """Operation of a formula; the same as ``Operation`` in ``launches.cpp``."""

    CONSTANT = 0
    ROWS = 1
    ADD = 2
    SUBTRACT = 3
    MULTIPLY = 4
    DIVIDE = 5
    MINIMUM = 6
    MAXIMUM = 7
    GREATER = 8


class Formulas:
    """The formulas of a plan, each stored once, with their values for the batch it is made on.

    Attributes
    ----------
    listed : list of (Operation, int, int)
        Operation and operands: numbers of earlier formulas, or the value of a constant, or a level.
    guards : dict
        Formula -> the value for which the plan holds.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self.listed: list[tuple[int, int, int]] = []
        self.guards: dict[int, int] = {}
        self._rows = rows
        self._values: list[int] = []
        self._numbers: dict[tuple[int, int, int], int] = {}

    def rows(self, level: int) -> Size:
        """Return the number of sites of a level."""
        return self._size(Operation.ROWS, level, 0, self._rows[level])

    def number(self, size: int | Size) -> int:
        """Return the number of a formula, or of the formula of a constant."""
        return self._constant(size).number

    def value(self, number: int) -> int:
        """Return the value of a formula for the batch that the plan is made on."""
        return self._values[number]

    def combine(self, operation: Operation, a: int | Size, b: int | Size) -> Size:
        """Return the formula of an operation."""
        first, second = self._constant(a), self._constant(b)
        x, y = self._values[first.number], self._values[second.number]
        results = {
            Operation.ADD: x + y,
            Operation.SUBTRACT: x - y,
            Operation.MULTIPLY: x * y,
            Operation.DIVIDE: x // y if y else 0,
            Operation.MINIMUM: min(x, y),
            Operation.MAXIMUM: max(x, y),
            Operation.GREATER: int(x > y),
        }
        return self._size(operation, first.number, second.number, results[operation])

    def is_greater(self, a: int | Size, b: int | Size) -> bool:
        """Compare for the batch that the plan is made on; the plan holds where it is the same."""
        found = self.combine(Operation.GREATER, a, b)
        self.guards[found.number] = self._values[found.number]
        return bool(self._values[found.number])

    def _constant(self, size: int | Size) -> Size:
        if isinstance(size, Size):
            return size
        return self._size(Operation.CONSTANT, size, 0, size)

    def _size(self, operation: Operation, a: int, b: int, value: int) -> Size:
        key = (int(operation), a, b)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.listed)
            self.listed.append(key)
            self._values.append(value)
        return Size(self, number)


class Size:
    """A whole number, not negative, that depends on the batch.

    Parameters
    ----------
    formulas : Formulas
        The formulas of its plan.
    number : int
        Its formula.
    """

    __slots__ = ("formulas", "number")

    def __init__(self, formulas: Formulas, number: int) -> None:
        self.formulas = formulas
        self.number = number

    def __repr__(self) -> str:
        return str(self.formulas.value(self.number))

    def __hash__(self) -> int:
        return hash((id(self.formulas), self.number))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Size) and other.number == self.number:
            return True
        if not isinstance(other, int | Size):
            return False
        return not (self > other) and not (self < other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return self > 0

    def __gt__(self, other: int | Size) -> bool:
        return self.formulas.is_greater(self, other)

    def __lt__(self, other: int | Size) -> bool:
        return self.formulas.is_greater(other, self)

    def __ge__(self, other: int | Size) -> bool:
        return not self < other

    def __le__(self, other: int | Size) -> bool:
        return not self > other

    def __add__(self, other: int | Size) -> Size:
        return self.formulas.combine(Operation.ADD, self, other)

    __radd__ = __add__

    def __sub__(self, other: int | Size) -> Size:
        return self.formulas.combine(Operation.SUBTRACT, self, other)

    def __rsub__(self, other: int) -> Size:
        return self.formulas.combine(Operation.SUBTRACT, other, self)

    def __mul__(self, other: int | Size) -> Size:
        return self.formulas.combine(Operation.MULTIPLY, self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int | Size) -> Size:
        return self.formulas.combine(Operation.DIVIDE, self, other)

    def __rfloordiv__(self, other: int) -> Size:
        return self.formulas.combine(Operation.DIVIDE, other, self)

    def minimum(self, other: int | Size) -> Size:
        """Return the smaller of two numbers."""
        return self.formulas.combine(Operation.MINIMUM, self, other)

    def maximum(self, other: int | Size) -> Size:
        """Return the larger of two numbers."""
        return self.formulas.combine(Operation.MAXIMUM, self, other)


Extent: TypeAlias = int | Size

_tape: ContextVar[Any] = ContextVar("tape", default=None)


def current_tape() -> Any:
    """Return the ``Tape`` that records launches at present, or None."""
    return _tape.get()


@contextmanager
def recording(tape: Any) -> Iterator[None]:
    """Record launches in a tape, and make new arrays in it."""
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


class Memory:
    """An array that a plan refers to.

    Attributes
    ----------
    given : int
        Its number among the addresses that are given to a pass; -1 if the plan places it.
    size : int or Size
        Its bytes.
    first, last : int
        The launches that use it, -1 for none.
    """

    __slots__ = ("first", "given", "last", "size")

    def __init__(self, size: Extent, given: int = -1) -> None:
        self.size = size
        self.given = given
        self.first = self.last = -1


class Symbol:
    """An array in place of a tensor, contiguous or with rows that are further apart.

    Parameters
    ----------
    tape : Tape
        That in which it was made.
    memory : Memory
        The array that it is a part of.
    shape : tuple of int or Size
    dtype : torch.dtype
    device : torch.device
    strides : tuple of int or Size, optional
        Distances between neighbours along each axis, in values; contiguous if they are not given.
    offset : int
        Bytes before its first value.
    """

    __slots__ = ("__weakref__", "device", "dtype", "memory", "offset", "shape", "strides", "tape")

    requires_grad = False

    def __init__(
        self,
        tape: Any,
        memory: Memory,
        shape: tuple[Extent, ...],
        dtype: torch.dtype,
        device: torch.device,
        strides: tuple[Extent, ...] = (),
        offset: int = 0,
    ) -> None:
        self.tape = tape
        self.memory = memory
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.strides = strides or contiguous_strides(shape)
        self.offset = offset

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Unplannable(f"something other than a kernel reads rows between layers ({name})")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> NoReturn:
        """Refuse a function of torch.

        Raises
        ------
        Unplannable
            Always.
        """
        name = getattr(function, "__name__", "")
        raise Unplannable(f"something other than a kernel reads rows between layers ({name})")

    def new_empty(self, shape: Sequence[Extent], dtype: torch.dtype | None = None) -> Symbol:
        """Return an array that a launch will write."""
        made: Symbol = current_tape().empty(tuple(shape), dtype or self.dtype)
        return made

    def contiguous(self) -> Symbol:
        """Return the array; its rows are not further apart than they are long."""
        if self.strides != contiguous_strides(self.shape):
            raise Unplannable("an array between layers is not contiguous")
        return self

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def numel(self) -> Extent:
        """Return the number of values."""
        return product(self.shape)

    def stride(self, axis: int) -> Extent:
        """Return the distance between neighbours along an axis, in values."""
        return self.strides[axis]

    def split_with_sizes(self, sizes: Sequence[int], dim: int) -> list[Symbol]:
        """Return consecutive parts of the last axis."""
        if dim != len(self.shape) - 1:
            raise Unplannable("an array between layers is split along its rows")
        parts, begin = [], self.offset
        for size in sizes:
            shape = (*self.shape[:-1], size)
            parts.append(
                Symbol(self.tape, self.memory, shape, self.dtype, self.device, self.strides, begin)
            )
            begin += size * self.dtype.itemsize
        return parts

    def _fix_weakref(self) -> None:
        """Do nothing; dictionaries with weak keys call it for tensors."""

    def __add__(self, other: object) -> NoReturn:
        raise Unplannable("gradients are added outside of kernels")

    def __getitem__(self, index: None) -> Symbol:
        if index is not None:
            raise Unplannable("an array between layers is indexed")
        return Symbol(
            self.tape, self.memory, (1, *self.shape), self.dtype, self.device,
            (self.numel(), *self.strides), self.offset,
        )  # fmt: skip


def cdiv(size: Any, by: Any) -> Any:
    """Return a quotient of positive sizes, rounded up."""
    return (size + by - 1) // by


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of two sizes."""
    if isinstance(a, Size):
        return a.minimum(b)
    return b.minimum(a) if isinstance(b, Size) else min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of two sizes."""
    if isinstance(a, Size):
        return a.maximum(b)
    return b.maximum(a) if isinstance(b, Size) else max(a, b)


def product(sizes: Sequence[Extent]) -> Extent:
    """Return the product of some sizes."""
    return math.prod(sizes)


def contiguous_strides(shape: Sequence[Extent]) -> tuple[Extent, ...]:
    """Return the distances between neighbours in a contiguous array."""
    return tuple(product(shape[axis + 1 :]) for axis in range(len(shape)))
