"""Checks of numbers on the command line."""

from __future__ import annotations

import math

import typer

from harness.errors import BadInput


def positive(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Return an option's number if it is finite and above 0.

    Raises
    ------
    BadInput
        If it is not.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        name = max(parameter.opts, key=len) if parameter.opts else parameter.name
        raise BadInput(f"{name} must be a finite number above 0, not {value:g}")
    return value
