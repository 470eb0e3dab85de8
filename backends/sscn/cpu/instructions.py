"""Streams of instructions for C++: which operations to run, and on which arrays."""

from __future__ import annotations

import struct
from array import array

import torch
from torch import Tensor

from backends.sscn.cpu import processor
from backends.sscn.cpu.arrays import checked
from backends.sscn.cpu.encoding import FIELDS, WORDS, Field, Opcode, Products, words
from backends.sscn.kernel_set import IntervalCallback

__all__ = [
    "ADD",
    "CONVOLVE",
    "FOLD",
    "FOLD_GRADIENT",
    "INPUT_GRADIENT",
    "INVERT",
    "STATISTICS_GRADIENT",
    "TAKE",
    "WEIGHT_GRADIENT",
    "InstructionStream",
    "Products",
]

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
) = Opcode  # a global is ten times as fast as a member of an enumeration


def _packer(fields: tuple[Field, ...]) -> struct.Struct:
    """Return the layout of an instruction: floats as doubles, everything else as integers."""
    kinds = "".join("d" if field.type in ("float", "double") else "q" for field in fields)
    return struct.Struct(f"=q{kinds}{8 * (WORDS - 1 - len(fields))}x")


_PACK = {code: _packer(words(FIELDS[code])).pack for code in Opcode}


class InstructionStream:
    """Instructions in the order in which they will run, and the arrays that they use."""

    def __init__(self) -> None:
        self._words: list[bytes] = []
        self._arrays: list[Tensor] = []
        self._reports: list[tuple[int, IntervalCallback]] = []

    def write(self, code: Opcode, *values: float) -> None:
        """Append an instruction; the values are those of ``encoding.FIELDS``, in order."""
        self._words.append(_PACK[code](code, *values))

    def keep(self, values: Tensor) -> int:
        """Return the address of an array, which is kept alive until the instructions have run."""
        self._arrays.append(values)
        return values.data_ptr()

    def address(self, values: Tensor) -> int:
        """Return the address of floats that the caller keeps alive, or of a contiguous copy."""
        contiguous = checked(values)
        if contiguous is not values:
            self._arrays.append(contiguous)
        return contiguous.data_ptr()

    def report(self, callback: IntervalCallback) -> None:
        """Request a report of the interval in which the instructions since the last call run."""
        self._reports.append((len(self._words), callback))

    def run(self) -> None:
        """Run all instructions and empty the stream."""
        number = len(self._words)
        if not number:
            return
        encoded = array("q", b"".join(self._words))
        times = array("d", bytes(8 * (number + 1))) if self._reports else array("d")
        processor.run(
            encoded.buffer_info()[0], number, times.buffer_info()[0] if times else 0,
            torch.get_num_threads(),
        )  # fmt: skip
        begin = 0
        for end, callback in self._reports:
            callback(times[begin], times[end])
            begin = end
        del self._words[:], self._arrays[:], self._reports[:]
