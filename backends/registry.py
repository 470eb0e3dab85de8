"""The engines by name: built in, or announced by entry points; probed in a child process."""

from __future__ import annotations

import importlib

from backends.contract import Backend

BUILT_IN = {
    "sscn": "backends.sscn.adapter",
    "dense": "backends.dense",
}


class UnknownBackend(ValueError):
    """No engine has this name."""


def load(
    name: str, *, dim: int, device: str, precision: str, options: dict[str, str] | None = None
) -> Backend:
    """Set an engine up.

    Raises
    ------
    UnknownBackend
        If no engine has this name.
    """
    if name not in BUILT_IN:
        known = ", ".join(sorted(BUILT_IN))
        raise UnknownBackend(f"there is no engine called {name!r}; choose one of {known}")
    module = importlib.import_module(BUILT_IN[name])
    return module.Backend(dim, device, precision, dict(options or {}))
