"""Instructions for the C++ loop of ``program.hpp``: what to do, and the addresses it takes."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from backends.sscn.cpu import _kernels
from backends.sscn.cpu.arrays import checked

Tell = Callable[[float, float], None]


class Kind(IntEnum):
    """What an instruction does; the numbers are those of ``program.hpp``."""

    FOLD = 0
    CONVOLVE = 1
    STATISTICS_GRADIENT = 2
    INPUT_GRADIENT = 3
    WEIGHT_GRADIENT = 4
    FOLD_GRADIENT = 5
    ADD = 6
    TAKE = 7
    INVERT = 8


class Products(IntEnum):
    """What rows and weights are rounded to before they are multiplied, as in ``engine.hpp``."""

    FLOAT32 = 0
    BFLOAT16 = 1


(
    FOLD,
    CONVOLVE,
    STATISTICS_GRADIENT,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    FOLD_GRADIENT,
    ADD,
    TAKE,
    INVERT,
) = Kind  # a global is ten times as quick as a member

_WORDS = 25
_PACK = [struct.Struct(f"{given}q{8 * (_WORDS - given)}x").pack for given in range(_WORDS + 1)]


class Instructions:
    """A list of instructions and the arrays that they need; addresses stand for arrays."""

    def __init__(self) -> None:
        self._words: list[bytes] = []
        self._kept: list[Tensor] = []
        self._told: list[tuple[int, Tell]] = []

    def write(self, kind: Kind, *words: int) -> None:
        """Append an instruction."""
        self._words.append(_PACK[len(words) + 1](kind, *words))

    def keep(self, values: Tensor) -> int:
        """Return the address of an array, which is kept alive until the instructions have run."""
        self._kept.append(values)
        return values.data_ptr()

    def address(self, values: Tensor) -> int:
        """Return the address of floats that others keep alive, or of a contiguous copy."""
        there = checked(values)
        if there is not values:
            self._kept.append(there)
        return there.data_ptr()

    def tell(self, tell: Tell) -> None:
        """Have somebody told when what was written since the last call began and ended."""
        self._told.append((len(self._words), tell))

    def run(self) -> None:
        """Run all of them and forget them."""
        number = len(self._words)
        if not number:
            return
        words = array("q", b"".join(self._words))
        times = array("d", bytes(8 * (number + 1))) if self._told else array("d")
        _kernels.run(
            words.buffer_info()[0], number, times.buffer_info()[0] if times else 0,
            torch.get_num_threads(),
        )  # fmt: skip
        begin = 0
        for end, tell in self._told:
            tell(times[begin], times[end])
            begin = end
        del self._words[:], self._kept[:], self._told[:]


@functools.cache
def bits(value: float) -> int:
    """Return the bits of a double as an integer."""
    (found,) = struct.unpack("q", struct.pack("d", value))
    return int(found)
