"""Jobs: work of the same kind that one launch does on the arrays of several layers or maps.

A kernel has each of its arguments once per job, numbered; a program selects those of its own job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl

MOST = 5
"""Jobs of a launch."""


@triton.jit
def of_job(job, first, second, third, fourth, fifth):
    """Return an argument of one of the jobs."""
    found = tl.where(job == 1, second, first)
    found = tl.where(job == 2, third, found)
    found = tl.where(job == 3, fourth, found)
    return tl.where(job == 4, fifth, found)


def grouped(jobs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the jobs of each launch."""
    for begin in range(0, len(jobs), MOST):
        yield jobs[begin : begin + MOST]


def numbered(jobs: Sequence[Sequence[Any]], unused: Sequence[Any]) -> list[Any]:
    """Return the arguments of the jobs of a launch, as its kernel has them.

    Parameters
    ----------
    jobs : sequence of sequence
        The arguments of each job.
    unused : sequence
        Those of a job that no program has.
    """
    padded = [*jobs, *[unused] * (MOST - len(jobs))]
    return [each for of_all in zip(*padded, strict=True) for each in of_all]
