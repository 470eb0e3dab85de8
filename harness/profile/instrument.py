"""Ranges around all parts of a workload's call, in a context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

import harness.run.workload
from harness.profile.backward import record_backward
from harness.profile.ranges import INSTRUMENT, RangeKey, RangeRecorder
from harness.run.engine_interface import Block, ConvolutionChain, EngineLayer, Kind, Level, UResNet
from harness.run.workload import Workload

INPUT = RangeKey("input", "input", "forward")
OUTPUT = RangeKey("output", "input", "forward")
LOSS = RangeKey("loss", "loss", "forward")
OPTIMISER = RangeKey("optimiser", "optimiser", "step")

KIND_WORDS = {
    "norm": "normalisation",
    "relu": "normalisation",
    "linear": "linear",
    "join": "join",
    "add": "add",
}
"""Words in the class names of an engine's own modules, and the kinds of layers they stand for."""


class _BackendWithRanges:
    """A backend with some of its functions replaced."""

    def __init__(self, backend: Any, **functions: Callable[..., Any]) -> None:
        self._backend = backend
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def kind_of(kind: Kind) -> str:
    """Return the name of a kind of layer in a profile."""
    named = {Kind.NORM: "normalisation", Kind.LINEAR: "linear"}
    return named.get(kind, "convolution")


@contextlib.contextmanager
def recording_ranges(workload: Workload, ranges: RangeRecorder) -> Iterator[None]:
    """Record ranges around the parts of a workload's call during the context."""
    with contextlib.ExitStack() as stack:
        observe = getattr(workload.backend, "observe", None)
        if observe is not None:
            stack.enter_context(observe(ranges))
        stack.enter_context(_ranges_on_network(workload, ranges))
        stack.enter_context(_ranges_on_training(workload, ranges))
        yield


def bytes_per_number(workload: Workload, call: Callable[[], Any]) -> int:
    """Return the size of a number in the rows between layers, as the engine stores them.

    It is that of the first convolution's output in one call. An engine may compute in bf16 and
    still store four bytes per number.

    Parameters
    ----------
    workload : Workload
        In its initial state, to which it returns.
    call : callable
        The workload's call.
    """
    sizes = []

    def read(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(workload.backend.features(output).element_size())

    layers = [module for module in workload.network.modules() if isinstance(module, EngineLayer)]
    if not layers:  # a network of the engine, whose rows cannot be inspected
        return int(workload.features.element_size())
    handle = layers[0].register_forward_hook(read)
    try:
        call()
    finally:
        handle.remove()
        workload.reset()
    return int(sizes[0])


@contextlib.contextmanager
def _ranges_on_network(workload: Workload, ranges: RangeRecorder) -> Iterator[None]:
    """Record ranges around the layers, the functions between them, and input and output."""
    backend, network = workload.backend, workload.network
    with contextlib.ExitStack() as stack:

        def wrap(owner: Any, name: str, key: RangeKey) -> None:
            stack.enter_context(replaced(owner, name, lambda old: ranges.wrap(old, key)))

        def wrap_in_backend(module: Any, name: str, key: RangeKey) -> None:
            function = ranges.wrap(getattr(backend, name), key)
            other = _BackendWithRanges(backend, **{name: function})
            stack.enter_context(_attribute(module, "backend", other))

        for name, module in network.named_modules():
            if isinstance(module, EngineLayer):
                wrap(module, "forward", RangeKey(name, kind_of(module.kind), "forward"))
            elif isinstance(module, Block):
                wrap_in_backend(module, "add", RangeKey(f"{name}.add", "add", "forward"))
            elif isinstance(module, Level):
                wrap_in_backend(module, "cat", RangeKey(f"{name}.join", "join", "forward"))
        if isinstance(network, (UResNet, ConvolutionChain)):
            wrap_in_backend(network, "features", OUTPUT)
        else:
            for name, kind, module in _leaf_modules(network):
                wrap(module, "forward", RangeKey(name, kind, "forward"))
        wrap(network, "tensor", INPUT)
        wrap_in_backend(workload, "with_features", INPUT)
        yield


@contextlib.contextmanager
def _ranges_on_training(workload: Workload, ranges: RangeRecorder) -> Iterator[None]:
    """Record ranges around the loss, the layers in the backward pass, and the optimiser."""

    def wrap_zero_grad(zero_grad: Callable[..., Any]) -> Callable[..., Any]:
        return ranges.wrap(zero_grad, OPTIMISER)

    def wrap_step(step: Callable[..., Any]) -> Callable[..., Any]:
        ranged = ranges.wrap(step, OPTIMISER)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            ranges.set_direction("step")
            return ranged(*arguments, **named)

        return wrapped

    def wrap_loss(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        ranged = ranges.wrap(loss, LOSS)

        def wrapped(*arguments: Any, **named: Any) -> Tensor:
            value: Tensor = ranged(*arguments, **named)
            ranges.enter(ranges.code(INSTRUMENT))
            record_backward(value.grad_fn, ranges)
            ranges.leave()
            ranges.set_direction("backward")
            return value

        return wrapped

    optimizer = workload.optimizer
    with (
        replaced(optimizer, "zero_grad", wrap_zero_grad),
        replaced(optimizer, "step", wrap_step),
        replaced(harness.run.workload, "event_cross_entropy", wrap_loss),
    ):
        yield


@contextlib.contextmanager
def replaced(
    owner: Any, name: str, decorate: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Decorate an attribute of a module, class or object during the context."""
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


def _leaf_modules(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield name, kind and module of the leaf modules of an engine's own network."""
    for name, module in network.named_modules():
        if next(module.children(), None) is not None or not name:
            continue
        words = type(module).__name__.lower()
        kind = next((KIND_WORDS[word] for word in KIND_WORDS if word in words), "convolution")
        yield name, kind, module
