"""The interface of a format to the fuzzing suite: valid files, mutations, and reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from harness.errors import BadInput
from tests.fuzz.mutations import Rng, mutate_bytes

SECONDS = 60.0
"""Longest time for reading one mutated file."""


class Format(ABC):
    """One format.

    Attributes
    ----------
    name
        Its name on the command line.
    checked
        Whether checksums cover the content: reading gives the original or a refusal.
    refusals
        The exceptions that count as one sentence to the user.
    always_read
        Whether damaged parts are left out or made again, so that no file is refused as a whole.
    suffix
        Of a file's name.
    trials
        Number of mutations in CI.
    """

    name: str
    checked = False
    always_read = False
    suffix = ""
    trials = 40
    refusals: tuple[type[Exception], ...] = (BadInput,)

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write a valid file."""

    def mutate(self, path: Path, rng: Rng) -> None:
        """Mutate a file in place."""
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))

    @abstractmethod
    def read(self, path: Path) -> str:
        """Read all of a file, and return the identity of its content."""

    def contains(self, path: Path) -> bool:
        """Return whether the project reads a file, on which a reader dies, in a child process."""
        return False
