"""Reading of mutated files in child processes with limits."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from harness.child_process import die_with_parent
from tests.fuzz.format import SECONDS, Format
from tests.fuzz.formats import FORMATS

FIRST_SECONDS = 240.0
"""Longest time for the first answer of a child process, which has the valid file to write."""

MEMORY_BYTES = 6 << 30


@dataclass
class Outcome:
    """Outcomes of the mutations of one format.

    Attributes
    ----------
    counts
        Of ``read``, ``refused``, ``contained`` (the library died or hung, which the reader's
        child process turns into one sentence), and of failures by kind.
    failures
        Seed and description of each failure.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, seed: int, kind: str, detail: str = "") -> None:
        """Count an outcome; with a description it is a failure."""
        self.counts[kind] += 1
        if detail:
            self.failures.append((seed, f"{kind}: {detail}"))


def format_named(name: str) -> Format:
    """Return a format by its name."""
    return next(form for form in FORMATS if form.name == name)


def try_format(name: str, first: int, count: int | None, *, until: float | None = None) -> Outcome:
    """Read mutations of a format with consecutive seeds.

    Parameters
    ----------
    name : str
        Of the format.
    first : int
        The first seed.
    count : int, optional
        Number of mutations; without it, until a time.
    until : float, optional
        Of ``time.monotonic``.
    """
    outcome = Outcome()
    seed = first
    with tempfile.TemporaryDirectory(prefix="sscn-bench-fuzz-") as folder:
        while (count is None or seed < first + count) and (
            until is None or time.monotonic() < until
        ):
            last = first + count if count is not None else seed + 1000
            seed = _try_in_child(name, seed, last, Path(folder), outcome, until)
    return outcome


def _try_in_child(
    name: str, seed: int, last: int, folder: Path, outcome: Outcome, until: float | None
) -> int:
    """Let one child process read mutations until it dies; return the next seed."""
    form = format_named(name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.formats"])  # with torch, once for all children
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, name, seed, last, folder), daemon=True)
    child.start()
    theirs.close()
    answered = False
    try:
        while seed < last and (until is None or time.monotonic() < until):
            if not ours.poll(SECONDS if answered else FIRST_SECONDS):
                child.kill()
                _judge_death(form, seed, folder, outcome, "hang")
                return seed + 1
            try:
                kind, detail = ours.recv()
            except (EOFError, OSError):
                child.join()
                _judge_death(form, seed, folder, outcome, f"exit code {child.exitcode}")
                return seed + 1
            answered = True
            outcome.add(seed, kind, detail)
            seed += 1
        return seed
    finally:
        child.kill()
        child.join()


def mutated(folder: Path, form: Format, seed: int) -> Path:
    """Return the file of a seed: one of its own, since a refused file may still be open."""
    return folder / f"mutated-{seed}{form.suffix}"


def _judge_death(form: Format, seed: int, folder: Path, outcome: Outcome, cause: str) -> None:
    """Count the death of the reading process."""
    path = mutated(folder, form, seed)
    try:
        contained = form.contains(path)
    except Exception as error:
        outcome.add(seed, "death", f"{cause}; then {type(error).__name__}: {error}")
        return
    if contained:
        outcome.add(seed, "contained")
    else:
        outcome.add(seed, "death", cause)


def _serve(connection: Connection, name: str, seed: int, last: int, folder: Path) -> None:
    """Read mutations, and send what became of each."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    form = format_named(name)
    valid = folder / f"valid{form.suffix}"
    form.write(valid)
    content = valid.read_bytes()
    original = form.read(valid)
    for number in range(seed, last):
        connection.send(_try(form, content, original, number, mutated(folder, form, number)))


def _try(form: Format, content: bytes, original: str, seed: int, path: Path) -> tuple[str, str]:
    """Mutate and read a file; return the kind of outcome, and a description of a failure."""
    path.write_bytes(content)
    form.mutate(path, np.random.default_rng(seed))
    try:
        found = form.read(path)
    except form.refusals as refusal:
        if "\n" in str(refusal):
            return "message", f"more than one line: {refusal}"
        return "refused", ""
    except MemoryError:
        return "refused", ""
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        path.unlink(missing_ok=True)
    if form.checked and found != original:
        return "silent change", "the content differs from the original"
    return "read", ""
