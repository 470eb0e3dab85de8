"""What an adapter can tell a profiler, by wrapping its engine's functions while it is watched.

Nothing is wrapped, and nothing costs time, unless somebody watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Function = Callable[..., Any]


class Account(Protocol):
    """Counts for one layer what is done elsewhere than in its call."""

    @property
    def told(self) -> bool:
        """Whether it is enough to tell the times afterwards."""
        ...

    def call(self, function: Callable[[], None], *, back: bool) -> None:
        """Call a function that does the layer's work, or makes its gradients."""
        ...

    def tell(self, begin: float, end: float, *, back: bool) -> None:
        """Tell when that was done, in seconds of ``time.perf_counter``, one after the other."""
        ...


class Watcher(Protocol):
    """Notes which layer spends the time."""

    def within(self, kind: str) -> Callable[[Function], Function]:
        """Return a decorator: calls count as ``kind`` of the layer that makes them."""
        ...

    def later(self, function: Function) -> Function:
        """Return the function so that its call counts for the layer that runs now."""
        ...

    def account(self) -> Account:
        """Return the account of the layer that runs now."""
        ...

    def outside(self, function: Function) -> Function:
        """Return the function so that its call, and nodes of autograd's, count for no layer."""
        ...


@contextlib.contextmanager
def replaced(owner: Any, name: str, decorate: Callable[[Function], Function]) -> Iterator[None]:
    """Decorate an attribute of a module, class or object for a while."""
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
def building_maps(watcher: Watcher, *places: tuple[Any, str]) -> Iterator[None]:
    """Count calls of some functions, each an owner and its attribute, as building of maps."""
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(replaced(owner, name, watcher.within("map")))
        yield
