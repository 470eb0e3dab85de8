"""Support for ``torch.compile``: functions that it must not trace, and kernels that it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from backends.sscn.kernel_set import KernelSet
from backends.sscn.reference import REFERENCE

P = ParamSpec("P")
R = TypeVar("R")


def call_untraced(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function that the compiler must not trace; the compiled graph ends there."""
    if not torch.compiler.is_compiling():
        return function(*arguments, **named)
    disable: Callable[[Callable[P, R]], Callable[P, R]] = torch.compiler.disable
    return disable(function)(*arguments, **named)


def traceable(kernels: KernelSet) -> KernelSet:
    """Return the kernels, or the reference kernels, which are traceable, during compilation."""
    return REFERENCE if torch.compiler.is_compiling() else kernels
