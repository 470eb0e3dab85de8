"""Sizes of a plan: Python's formulas have the values that C++ computes for other batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.sscn import selection

if not selection.is_compiled():
    pytest.skip("the compiled kernels are not built", allow_module_level=True)

from backends.sscn.cpu import processor
from backends.sscn.cuda.symbols import Formulas, Memory, Symbol, cdiv, maximum, minimum
from backends.sscn.recording import Unplannable

SMALL = st.integers(1, 50)
ROWS = st.lists(st.integers(1, 10**6), min_size=2, max_size=2)
STEPS = {
    "add": lambda a, b: a + b,
    "add to a number": lambda a, b: b + a,
    "subtract": lambda a, b: maximum(a - b, 1),
    "subtract from a number": lambda a, b: maximum(10**7 - a, b),
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: maximum(a // b, 1),
    "divide a number": lambda a, b: maximum(10**6 // a, b),
    "cdiv": cdiv,
    "minimum": minimum,
    "minimum with a number": lambda a, b: minimum(b, a),
    "maximum": maximum,
}


def compute(steps, rows):
    """Apply steps to the sizes of two levels; no intermediate value is zero or very large."""
    value, other = rows
    for name, number in steps:
        value = minimum(STEPS[name](value, number if number % 2 else minimum(other, number)), 10**9)
    return value


@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), SMALL), max_size=8),
    planned=ROWS,
    rows=ROWS,
)
def test_a_formula_is_the_same_in_c_plus_plus(steps, planned, rows):
    formulas = Formulas(planned)
    size = compute(steps, [formulas.rows(0), formulas.rows(1)])
    assert int(str(size)) == compute(steps, planned)
    arrays = [(formulas.number(size * 256), 0, 0)]
    passed = processor.LaunchPlan(formulas.listed, [], arrays, []).begin(rows)
    assert passed.bytes == 256 * compute(steps, rows)


@given(planned=ROWS, rows=ROWS, limit=st.integers(1, 10**6))
def test_a_plan_holds_where_comparisons_have_the_same_outcome(planned, rows, limit):
    formulas = Formulas(planned)
    first, second = formulas.rows(0), formulas.rows(1)
    outcomes = (first >= limit, first < second, first == second, second != limit)
    assert outcomes == (
        planned[0] >= limit, planned[0] < planned[1], planned[0] == planned[1], planned[1] != limit,
    )  # fmt: skip
    plan = processor.LaunchPlan(formulas.listed, [*formulas.guards.items()], [], [])
    now = rows[0] >= limit, rows[0] < rows[1], rows[0] == rows[1], rows[1] != limit
    found = plan.begin(rows) is not None
    if found:
        assert now == outcomes
    assert plan.begin(planned) is not None


def test_arrays_share_memory_only_if_their_lives_do_not_overlap():
    formulas = Formulas([1000])
    size = formulas.number(formulas.rows(0) * 4)
    lives = [(0, 1), (1, 2), (2, 3), (0, 9)]
    plan = processor.LaunchPlan(formulas.listed, [], [(size, *life) for life in lives], [])
    passed = plan.begin([100])
    places = [range(passed.offset(i), passed.offset(i) + 400) for i in range(len(lives))]
    for i, (first, last) in enumerate(lives):
        for j, (other_first, other_last) in enumerate(lives[:i]):
            if first <= other_last and other_first <= last:
                assert not set(places[i]) & set(places[j])
    assert passed.bytes == 3 * 512


def some_symbol(shape, tape=None):
    return Symbol(tape, Memory(0), shape, torch.float32, torch.device("cpu"))


def test_what_a_plan_cannot_hold_is_refused():
    rows = Formulas([10]).rows(0)
    symbol = some_symbol((rows, 4))
    for use in (
        lambda: symbol.sum(0),
        lambda: symbol + symbol,
        lambda: torch.zeros_like(symbol),
        lambda: symbol.split_with_sizes([1, 1], 0),
        lambda: symbol.split_with_sizes([2, 2], 1)[1].contiguous(),
    ):
        with pytest.raises(Unplannable):
            use()


def test_parts_of_columns_have_their_place_and_the_distance_of_rows():
    first, second = some_symbol((2, 7)).split_with_sizes([3, 4], 1)
    assert (first.offset, second.offset) == (0, 12)
    assert second.shape == (2, 4)
    assert second.stride(0) == 7
