"""Support for ``torch.compile``: what the compiler may trace, and what it must call as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from backends.sscn.kernel_set import KernelSet
from backends.sscn.reference import REFERENCE

P = ParamSpec("P")
R = TypeVar("R")


def call_untraced(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function that the compiler must not trace; it ends the compiled graph there."""
    if not torch.compiler.is_compiling():
        return function(*arguments, **named)
    disable: Callable[[Callable[P, R]], Callable[P, R]] = torch.compiler.disable
    return disable(function)(*arguments, **named)


def traceable(kernels: KernelSet) -> KernelSet:
    """Return the reference kernels while the compiler traces, which it can, else the given ones."""
    return REFERENCE if torch.compiler.is_compiling() else kernels
