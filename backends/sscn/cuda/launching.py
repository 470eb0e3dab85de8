"""Launches of kernels: their sizes, the device of their tensors, and a working interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
import triton
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, which multiplies bfloat16 as bit patterns."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a Triton kernel.

    Parameters
    ----------
    kernel : JITFunction
    grid : tuple of int
        Programs along up to three axes.
    *arguments
        Tensors and numbers.
    **constants
        Constant arguments, and the options of the compiler.
    """
    kernel[grid](*arguments, **constants)


def cdiv(size: int, by: int) -> int:
    """Return a quotient of positive numbers, rounded up."""
    return (size + by - 1) // by


def on_device_of_first(
    function: Callable[Concatenate[Tensor, Arguments], Result],
) -> Callable[Concatenate[Tensor, Arguments], Result]:
    """Make the device of the first argument current during a function.

    Triton compiles for the current device and launches on its current stream, even if the tensors
    are on another device.
    """

    @functools.wraps(function)
    def guarded(first: Tensor, /, *rest: Arguments.args, **named: Arguments.kwargs) -> Result:
        device = first.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return function(first, *rest, **named)
        with torch.cuda.device(device):
            return function(first, *rest, **named)

    return guarded


def check_interpreter(triton_version: str, numpy_version: str) -> None:
    """Check for versions with which Triton's interpreter fails in loops with a loaded bound.

    Up to Triton 3.6 it converts arrays of one element with ``int``, an error since NumPy 2.4.

    Raises
    ------
    ImportError
        If the versions are incompatible.
    """
    if _numbers(triton_version) < (3, 7) and _numbers(numpy_version) >= (2, 4):
        raise ImportError(
            f"the interpreter of Triton {triton_version} fails with NumPy {numpy_version}; install "
            "Triton 3.7 or later, or a NumPy before 2.4"
        )


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


if INTERPRETED:
    check_interpreter(triton.__version__, np.__version__)
