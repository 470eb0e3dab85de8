"""Puts ranges on everything that a cell's call does, forward and backward, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

import harness.run.workload
from harness.profile.ranges import LEAVE, PAUSE, Key, Ranges
from harness.run.engine_interface import Block, ConvolutionChain, Kind, Layer, Level, UResNet
from harness.run.workload import Workload

INPUT = Key("input", "input", "forward")
OUTPUT = Key("output", "input", "forward")
LOSS = Key("loss", "loss", "forward")
OPTIMISER = Key("optimiser", "optimiser", "step")
_ACCUMULATE = 2**64 - 1
"""The number of every node that stores a parameter's gradient."""


class _Named:
    """A backend with some of its functions replaced."""

    def __init__(self, backend: Any, **functions: Callable[..., Any]) -> None:
        self._backend = backend
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def kind_of(kind: Kind) -> str:
    """Return what a profile calls a kind of layer."""
    named = {Kind.NORM: "normalisation", Kind.LINEAR: "linear"}
    return named.get(kind, "convolution")


@contextlib.contextmanager
def watching(subject: Workload, ranges: Ranges) -> Iterator[None]:
    """Put ranges on a subject's call as long as the context lasts."""
    backend = subject.backend
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, key: Key) -> None:
            stack.enter_context(replaced(owner, name, lambda old: ranges.wrap(old, key)))

        def give(module: Any, **keys: Key) -> None:
            functions = {
                name: ranges.wrap(getattr(backend, name), key) for name, key in keys.items()
            }
            stack.enter_context(_attribute(module, "backend", _Named(backend, **functions)))

        own = getattr(backend, "observe", None)
        if own is not None:
            stack.enter_context(own(ranges))
        for name, module in subject.network.named_modules():
            if isinstance(module, Layer):
                put(module, "forward", Key(name, kind_of(module.kind), "forward"))
            elif isinstance(module, Block):
                give(module, add=Key(f"{name}.add", "add", "forward"))
            elif isinstance(module, Level):
                give(module, cat=Key(f"{name}.join", "join", "forward"))
        if isinstance(subject.network, (UResNet, ConvolutionChain)):
            give(subject.network, features=OUTPUT)
        else:
            for name, kind, module in _parts(subject.network):
                put(module, "forward", Key(name, kind, "forward"))
        put(subject.network, "tensor", INPUT)
        give(subject, with_features=INPUT)
        put(subject.optimizer, "zero_grad", OPTIMISER)
        stack.enter_context(
            replaced(
                subject.optimizer,
                "step",
                lambda step: _turned(ranges, ranges.wrap(step, OPTIMISER)),
            )
        )
        stack.enter_context(
            replaced(
                harness.run.workload,
                "event_cross_entropy",
                lambda loss: _followed(ranges, ranges.wrap(loss, LOSS)),
            )
        )
        yield


@contextlib.contextmanager
def replaced(
    owner: Any, name: str, decorate: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Decorate an attribute of a module, class or object as long as the context lasts."""
    own = vars(owner).get(name)
    setattr(owner, name, decorate(getattr(owner, name)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _parts(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the parts of an engine's own network that have no parts, named by what they are."""
    for name, module in network.named_modules():
        if next(module.children(), None) is not None or not name:
            continue
        what = type(module).__name__.lower()
        kinds = {
            "norm": "normalisation",
            "relu": "normalisation",
            "linear": "linear",
            "join": "join",
            "add": "add",
        }
        yield name, next((kinds[word] for word in kinds if word in what), "convolution"), module


def _turned(ranges: Ranges, step: Callable[..., Any]) -> Callable[..., Any]:
    def turned(*arguments: Any, **named: Any) -> Any:
        ranges.turn("step")
        return step(*arguments, **named)

    return turned


def _followed(ranges: Ranges, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the loss so that the backward pass from it is followed, too."""

    def followed(*arguments: Any, **named: Any) -> Tensor:
        value = loss(*arguments, **named)
        ranges.enter(ranges.code(PAUSE))
        follow(value.grad_fn, ranges)
        ranges.leave()
        ranges.turn("backward")
        return value

    return followed


def follow(root: Any, ranges: Ranges) -> None:
    """Put ranges on the backward pass: each node counts for the layer that made it.

    Autograd runs nodes in the reverse order of their making, so that the nodes of a layer run one
    after the other: a hook before the first and one after the last are enough. The nodes that
    store gradients run as soon as they can; they extend the layer that ended before.
    """
    owner = ranges.owners()
    nodes = []
    storing = {}
    seen, todo = {root}, [root]
    while todo:
        node = todo.pop()
        number = node._sequence_nr()
        nodes.append((number, node))
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child._sequence_nr() == _ACCUMULATE:
                storing[child] = number
            elif child not in seen:
                seen.add(child)
                todo.append(child)
    nodes.sort(key=lambda pair: -pair[0])

    codes: dict[int, int] = {}

    def backward(number: int) -> int:
        """Return the code of the backward range of a node, ``LEAVE`` if it is no layer's."""
        code = owner(number)
        if code not in codes:
            key = ranges.key(code) if code != LEAVE else PAUSE
            known = key.name not in ("host", PAUSE.name)
            codes[code] = ranges.code(key._replace(direction="backward")) if known else LEAVE
        return codes[code]

    for child, number in storing.items():
        if (code := backward(number)) != LEAVE:
            child.register_hook(_extending(ranges, code))
    before, last = LEAVE, None
    for number, node in nodes:
        code = backward(number)
        if code != before:
            if last is not None and before != LEAVE:
                last.register_hook(_leaving(ranges))
            if code != LEAVE:
                node.register_prehook(_entering(ranges, code))
        before, last = code, node
    if last is not None and before != LEAVE:
        last.register_hook(_leaving(ranges))


def _entering(ranges: Ranges, code: int) -> Callable[[Any], None]:
    enter = ranges.enter

    def entering(_: Any) -> None:
        enter(code)

    return entering


def _leaving(ranges: Ranges) -> Callable[[Any, Any], None]:
    leave = ranges.leave

    def leaving(_: Any, __: Any) -> None:
        leave()

    return leaving


def _extending(ranges: Ranges, code: int) -> Callable[[Any, Any], None]:
    def extending(_: Any, __: Any) -> None:
        ranges.extend(code)

    return extending
