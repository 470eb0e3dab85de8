"""What ``torch.compile`` meets in a network that it traces: whole functions, or torch instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from backends.sscn import reference
from backends.sscn.kernels import Kernels

P = ParamSpec("P")
R = TypeVar("R")


def whole(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that the compiler calls and never looks into."""

    def called(*arguments: P.args, **named: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            return function(*arguments, **named)
        left_alone: Callable[P, R] = torch.compiler.disable(function)
        return left_alone(*arguments, **named)

    return called


def traced(functions: Kernels) -> Kernels:
    """Return kernels for the compiler to look into while it does, the given ones otherwise."""
    return reference if torch.compiler.is_compiling() else functions
