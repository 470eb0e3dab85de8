"""Failures of a measurement, and the outcome that each exception of an engine becomes."""

from __future__ import annotations

from harness.errors import BadInput
from harness.results.record import Outcome
from harness.terminal import plain

OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "alloc_failed",
)
"""Parts of messages, in lower case, that mean that memory ran out."""

UNAVAILABLE = ("Unsupported", "UnknownBackend")
"""Names of the exceptions by which an engine refuses a cell; older commits define their own."""


class Failed(Exception):
    """A measurement that ends without times.

    Attributes
    ----------
    outcome : Outcome
        How the measurement ended.
    reason : str
        Why, in one sentence.
    stopped : bool
        Whether somebody else ended the process, by a signal that no engine sends to itself.
    """

    def __init__(self, outcome: Outcome, reason: str, *, stopped: bool = False) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = plain(reason)
        self.stopped = stopped


def classify(error: BaseException) -> Failed:
    """Return the outcome and the reason that stand for an exception of an engine."""
    if isinstance(error, Failed):
        return error
    first_line = (str(error).strip().splitlines() or [""])[0]
    reason = f"{type(error).__name__}: {first_line}".rstrip(": ")
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return Failed("out-of-memory", reason)
    if isinstance(error, (ImportError, BadInput)) or type(error).__name__ in UNAVAILABLE:
        return Failed("unavailable", first_line)
    return Failed("crashed", reason)
