"""Type annotations of the compiled module.

Addresses are ``data_ptr()`` of contiguous arrays, 0 for an absent array.
"""

from collections.abc import Sequence
from typing import TypeAlias

fingerprint: int

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use(name: str) -> None: ...
def peak(rounds: int, doubles: bool, threads: int) -> float: ...
def sort_sites(
    sites: int, rows: int, dim: int, bits: int, size: int, keys: int, order: int, threads: int
) -> int: ...
def connect(*arguments: int) -> None: ...
def coarsen(keys: int, rows: int, dim: int, coarse: int, first: int) -> int: ...
def connect_down(*arguments: int) -> None: ...
def connect_up(*arguments: int) -> None: ...
def run(words: int, number: int, times: int, threads: int) -> None: ...
def block_rows(rows: int) -> int: ...

class PlannedPass:
    def without_arrays(self) -> PlannedPass: ...

_Listed: TypeAlias = tuple[
    Sequence[int], Sequence[tuple[int, int, int, int]], Sequence[tuple[int, int, int, int]]
]

class Plan:
    def __init__(
        self,
        forward: _Listed,
        backward: _Listed,
        maps: Sequence[tuple[int, int]],
        levels: int,
        dim: int,
    ) -> None: ...
    def set_word(self, word: int, value: int) -> None: ...
    def forward(
        self,
        before: PlannedPass | None,
        keys: int,
        rows: int,
        spatial_size: int,
        given: Sequence[int],
        threads: int,
    ) -> PlannedPass: ...
    def backward(self, passed: PlannedPass, given: Sequence[int], threads: int) -> None: ...

_Three: TypeAlias = tuple[int, int, int]

class LaunchedPass:
    @property
    def bytes(self) -> int: ...
    def offset(self, array: int) -> int: ...
    def run(
        self,
        base: int,
        before: LaunchedPass | None,
        base_before: int,
        given: Sequence[int],
        stream: int,
    ) -> None: ...

class LaunchPlan:
    def __init__(
        self,
        formulas: Sequence[_Three],
        guards: Sequence[tuple[int, int]],
        arrays: Sequence[_Three],
        launches: Sequence[tuple[int, Sequence[int], int, int, Sequence[_Three]]],
    ) -> None: ...
    def set_address(self, launch: int, argument: int, address: int) -> None: ...
    def begin(self, rows: Sequence[int]) -> LaunchedPass | None: ...
