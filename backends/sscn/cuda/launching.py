"""Launches of kernels: their sizes, the device of their tensors, and a working interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
import triton
from torch import Tensor

from backends.sscn.cuda.symbols import current_tape
from backends.sscn.recording import Unplannable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, which multiplies bfloat16 as bit patterns."""


class Compiled(NamedTuple):
    """A kernel on the current device.

    Attributes
    ----------
    function : int
        The driver's handle.
    threads : int
        Threads of a program.
    shared : int
        Bytes of shared memory of a program.
    """

    function: int
    threads: int
    shared: int


def launch(kernel: Any, grid: tuple[Any, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a Triton kernel, or record the launch while a plan is made.

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
    tape = current_tape()
    if tape is None:
        kernel[grid](*arguments, **constants)
    else:
        tape.launch(kernel, grid, arguments, constants)


def compiled(kernel: Any, samples: Sequence[Any], constants: dict[str, Any]) -> Compiled:
    """Compile a kernel for the current device, or find it among those compiled before.

    Parameters
    ----------
    kernel : JITFunction
    samples : sequence
        Tensors, numbers, and types of tensors that are aligned.
    constants : dict
        As for ``launch``.
    """
    for parameter, sample in zip(kernel.params, samples, strict=False):
        if isinstance(sample, int) and not parameter.do_not_specialize:
            raise AssertionError(f"{kernel.__name__} depends on the value of {parameter.name}")
    found = kernel.warmup(*samples, grid=(1,), **constants)
    found._init_handles()
    if getattr(found.metadata, "global_scratch_size", 0):
        raise Unplannable(f"{kernel.__name__} needs memory from Triton's allocator")
    return Compiled(found.function, 32 * found.metadata.num_warps, found.metadata.shared)


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
