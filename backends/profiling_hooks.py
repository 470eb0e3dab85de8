"""Interface between an engine and a profiler: which calls belong to which layer.

An engine that defers work, or that builds kernel maps inside its layers, has a method
``observe(observer)``: a context manager during which the engine reports to the observer. Outside
of the context nothing is reported and no time is spent. The engine of this project calls the
observer itself; the adapters of other engines wrap functions of the engine during the context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Function = Callable[..., Any]


class LayerRecorder(Protocol):
    """Recorder for work of one layer that is done after the layer's call has returned."""

    @property
    def accepts_intervals(self) -> bool:
        """Whether ``record_interval`` may be called; if not, only ``record_call`` may."""
        ...

    def record_call(self, function: Callable[[], None], *, backward: bool) -> None:
        """Call a function and count its duration for the layer, or for the layer's gradients."""
        ...

    def record_interval(self, begin: float, end: float, *, backward: bool) -> None:
        """Count an interval that has passed, in seconds of ``time.perf_counter``.

        Intervals are reported in the order in which they passed.
        """
        ...


class ProfilingObserver(Protocol):
    """Assigns durations to layers; an engine reports to it inside ``observe``."""

    def within(self, kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Return a decorator: calls count as ``kind`` of the layer that makes the call."""
        ...

    def deferred(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function so that a later call counts for the layer that runs now."""
        ...

    def recorder(self) -> LayerRecorder:
        """Return a recorder for the layer that runs now."""
        ...

    def outside_layers(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function so that its call, and autograd nodes made in it, count for no layer.

        Work that a ``LayerRecorder`` records during the call still counts for its layer.
        """
        ...


@contextlib.contextmanager
def replaced(owner: Any, name: str, decorate: Callable[[Function], Function]) -> Iterator[None]:
    """Replace an attribute of a module, class or object by its decorated value in a context."""
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
def observing_maps(observer: ProfilingObserver, *places: tuple[Any, str]) -> Iterator[None]:
    """Count calls of functions, given as (owner, attribute), as construction of kernel maps."""
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(replaced(owner, name, observer.within("map")))
        yield
