"""The encoding of instructions is the same in Python and in C++."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from backends.sscn.cpu import encoding
from tests.backends.sscn.sets import needs_cpu


def test_the_header_is_the_one_generated_from_the_table():
    header = Path(encoding.__file__).with_name("instructions.hpp")
    assert header.read_text() == encoding.header(), (
        "run python -m backends.sscn.cpu.encoding > backends/sscn/cpu/instructions.hpp"
    )


def test_every_opcode_has_fields_and_fits():
    assert set(encoding.FIELDS) == set(encoding.Opcode)
    assert all(1 + len(encoding.words(each)) <= encoding.WORDS for each in encoding.FIELDS.values())


@needs_cpu
def test_an_instruction_with_a_missing_word_is_refused():
    from backends.sscn.cpu.instructions import ADD, InstructionStream

    with pytest.raises(struct.error):
        InstructionStream().write(ADD, 0, 0, 0)


@needs_cpu
def test_doubles_and_addresses_arrive_in_cpp():
    from backends.sscn.cpu.instructions import FOLD, InstructionStream

    stream = InstructionStream()
    rows, eps, momentum = 4, 0.5, 0.25
    sums = torch.tensor([[8.0], [20.0]], dtype=torch.float64)  # mean 2, variance 1
    weight, bias, mean, variance = (torch.full((1,), value) for value in (3.0, 1.0, 0.0, 0.0))
    scale, shift, moments = torch.empty(1), torch.empty(1), torch.empty(2, 1, dtype=torch.float64)
    addresses = [each.data_ptr() for each in (sums, weight, bias, mean, variance)]
    results = [each.data_ptr() for each in (scale, shift, moments)]
    stream.write(FOLD, *addresses, rows, 1, eps, momentum, *results, 1)
    stream.run()
    assert float(scale) == pytest.approx(3 / 1.5**0.5)
    assert float(shift) == pytest.approx(1 - 2 * float(scale))
    assert float(mean) == pytest.approx(0.5)
    assert float(variance) == pytest.approx(0.25 * 4 / 3)
