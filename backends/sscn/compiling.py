"""What ``torch.compile`` meets in a network that it traces: whole functions, or torch instead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from backends.sscn import reference
from backends.sscn.kernels import Kernels

P = ParamSpec("P")
R = TypeVar("R")

_left_alone: dict[Any, Any] = {}


def whole(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that the compiler calls and never looks into.

    The compiler is not imported for that: it takes a second.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    if function not in _left_alone:
        _left_alone[function] = torch.compiler.disable(function)
    return _left_alone[function]


def traced(functions: Kernels) -> Kernels:
    """Return kernels for the compiler to look into while it does, the given ones otherwise."""
    return reference if torch.compiler.is_compiling() else functions
