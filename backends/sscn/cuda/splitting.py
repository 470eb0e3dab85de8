"""Work of several programs that the last of them completes, in an order that is always the same.

Each program stores its part of a block of sums in a workspace and takes a ticket of the block. The
program with the last ticket adds all parts, its own included, in fixed order: the bits do not
depend on the order in which programs finish. No program waits for another. In the same way the
last program of a launch folds the norm whose sums the launch has computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.symbols import current_tape

TICKETS = 4096
"""Tickets of a stream: more than there are blocks where these are split, see ``blocks``."""

OF_LAUNCH = tl.constexpr(TICKETS - 1)
"""The ticket of a whole launch, which is that of no block."""

CAPTURES = 4
"""Streams per stream that may be first used while they are captured."""

_tickets: dict[tuple[torch.device, int], Tensor] = {}
"""Device and stream -> tickets of the launches on the stream."""

_for_captures: dict[torch.device, list[Tensor]] = {}
"""Device -> tickets for streams that are first used while they are captured."""


@triton.jit
def number_of_parts(steps, LEAST: tl.constexpr):
    """Return the number of programs with a part of a block of sums, which has so many steps."""
    return tl.maximum(tl.minimum(tl.num_programs(2), steps // LEAST), 1)


@triton.jit
def is_last(total, workspace, ticket, part, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store one part of a block of sums, and return whether the others are stored as well.

    ``workspace`` and ``ticket`` are those of the block.
    """
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(workspace + part * (ROWS * COLUMNS) + place, total)
    return _takes_last(ticket, parts)


@triton.jit
def is_last_of_launch(tickets):
    """Return whether all other programs with a ticket of the launch have stored their results.

    One program of each tile and each block of columns takes a ticket. The last one resets it.
    """
    ticket = tickets + OF_LAUNCH
    last = _takes_last(ticket, tl.num_programs(0) * tl.num_programs(1))
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def _takes_last(ticket, count):
    """Take a ticket after all stores of the program; return whether it is the last."""
    tl.debug_barrier()  # one thread takes the ticket, after the stores of all threads
    taken = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
    return taken == count - 1


@triton.jit
def sum_of_parts(workspace, ticket, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Reset the ticket of a block, and return the sum of its parts."""
    at_once: tl.constexpr = 1 if ROWS * COLUMNS >= 4096 else 8192 // (ROWS * COLUMNS)
    tl.store(ticket, 0)
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for part in tl.range(0, parts, loop_unroll_factor=at_once):
        total += tl.load(workspace + part * (ROWS * COLUMNS) + place, cache_modifier=".cg")
    return total


def tickets(like: Tensor) -> Tensor:
    """Return the tickets of the current stream of a tensor's device: zeros between two launches.

    CUDA graphs that are captured on the same stream share them, and must not run concurrently.
    """
    tape = current_tape()
    if tape is not None:
        planned: Tensor = tape.tickets
        return planned
    device = like.device
    stream = torch.cuda.current_stream(device).cuda_stream if like.is_cuda else 0
    found = _tickets.get((device, stream))
    if found is not None:
        return found
    spare = _for_captures.setdefault(device, [])
    if not (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        found, *more = torch.zeros((1 + CAPTURES, TICKETS), dtype=torch.int32, device=device)
        spare += more
    elif spare:
        found = spare.pop()
    else:  # this memory is the graph's, which makes it zero before each use
        return torch.zeros(TICKETS, dtype=torch.int32, device=device)
    _tickets[device, stream] = found
    return found
