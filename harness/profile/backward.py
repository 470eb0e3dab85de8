"""Ranges on the backward pass: an autograd node counts for the layer whose forward created it.

Autograd runs nodes in the reverse order of their creation, so that the nodes of one layer are
consecutive: a hook before the first and a hook after the last are sufficient. Nodes that store the
gradient of a parameter run as soon as possible; they extend the range of the layer before.

The order of creation is the sequence number of a node. torch has no public name for it, but its
own profiler uses the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.profile.ranges import HOST, INSTRUMENT, LEAVE, RangeRecorder

_STORES_GRADIENT = 2**64 - 1
"""Sequence number of every node that stores the gradient of a parameter."""


def sequence_number() -> int:
    """Return the sequence number of the next autograd node."""
    autograd: Any = torch.autograd  # the function is not public
    number: int = autograd._get_sequence_nr()
    return number


def record_backward(root: Any, ranges: RangeRecorder) -> None:
    """Record ranges in the backward pass from a node.

    Parameters
    ----------
    root : torch.autograd.graph.Node
        The node of the loss.
    ranges : RangeRecorder
        The recorder of the forward pass.
    """
    nodes, storing = _graph(root)
    code_of = _backward_codes(ranges)
    for node, number in storing.items():
        if (code := code_of(number)) != LEAVE:
            node.register_hook(_extending(ranges, code))
    before, last = LEAVE, None
    for number, node in nodes:
        code = code_of(number)
        if code != before:
            if last is not None and before != LEAVE:
                last.register_hook(_leaving(ranges))
            if code != LEAVE:
                node.register_prehook(_entering(ranges, code))
        before, last = code, node
    if last is not None and before != LEAVE:
        last.register_hook(_leaving(ranges))


def _graph(root: Any) -> tuple[list[tuple[int, Any]], dict[Any, int]]:
    """Return the nodes with their numbers in the order of execution, and the storing nodes.

    A node that stores a gradient is mapped to the number of the node before it.
    """
    nodes = []
    storing = {}
    seen, pending = {root}, [root]
    while pending:
        node = pending.pop()
        number = node._sequence_nr()
        nodes.append((number, node))
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child._sequence_nr() == _STORES_GRADIENT:
                storing[child] = number
            elif child not in seen:
                seen.add(child)
                pending.append(child)
    return sorted(nodes, key=lambda pair: -pair[0]), storing


def _backward_codes(ranges: RangeRecorder) -> Callable[[int], int]:
    """Return a function from a node's number to the code of its range, ``LEAVE`` if it has none."""
    owner = ranges.owners()
    codes = {LEAVE: LEAVE}

    def code_of(number: int) -> int:
        code = owner(number)
        if code not in codes:
            key = ranges.key(code)
            of_layer = key.name not in (HOST, INSTRUMENT.name)
            codes[code] = ranges.code(key._replace(direction="backward")) if of_layer else LEAVE
        return codes[code]

    return code_of


def _entering(ranges: RangeRecorder, code: int) -> Callable[[Any], None]:
    def enter(_: Any) -> None:
        ranges.enter(code)

    return enter


def _leaving(ranges: RangeRecorder) -> Callable[[Any, Any], None]:
    def leave(_: Any, __: Any) -> None:
        ranges.leave()

    return leave


def _extending(ranges: RangeRecorder, code: int) -> Callable[[Any, Any], None]:
    def extend(_: Any, __: Any) -> None:
        ranges.extend(code)

    return extend
