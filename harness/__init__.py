"""Measurement of sparse-convolution engines through the contract of ``backends``.

For notebooks and scripts, the functions of ``harness.interface`` are names of this package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.interface import (
        compare_runs,
        draw_event,
        load_records,
        measure,
        open_events,
        predict_labels,
    )

__all__ = [
    "compare_runs",
    "draw_event",
    "load_records",
    "measure",
    "open_events",
    "predict_labels",
]


def __getattr__(name: str) -> Any:
    """Import the interface when it is used: workers import this package and do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness import interface

    return getattr(interface, name)


def __dir__() -> list[str]:
    """Return the names of the interface, for completion."""
    return [*globals(), *__all__]
