"""Choice of a kernel set by its name, for a device and a storage type."""

from __future__ import annotations

import functools
import os
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

from backends.sscn.kernel_set import KernelSet

NAMES = ("auto", "reference", "cpu", "cuda")
"""The values of the engine's option ``kernels``."""

_COMPILED = "backends.sscn.cpu._kernels"
_OF_CPU = {torch.float32: "cpu", torch.bfloat16: "cpu.bf16"}


def is_compiled() -> bool:
    """Return whether the compiled module of the ``cpu`` kernels exists, without importing it."""
    package = find_spec("backends.sscn.cpu")
    if package is None:
        return False
    return PathFinder.find_spec(_COMPILED, package.submodule_search_locations) is not None


def choose(name: str, device: str, dtype: torch.dtype) -> str:
    """Return the name of the kernel set for an option, a device and a storage type.

    Parameters
    ----------
    name : str
        One of ``NAMES``; ``auto`` is the fastest set that runs here.
    device : str
        ``cpu``, or ``cuda`` with or without a number: without one, the current GPU.
    dtype : torch.dtype
        Storage type. For bfloat16 on the CPU, the C++ kernels are named ``cpu.bf16``.

    Returns
    -------
    str
        A name for ``load``.

    Raises
    ------
    ValueError
        If the kernel set does not exist or cannot run on the device in this type.
    """
    if name not in NAMES:
        raise ValueError(f"there is no kernel set {name!r}; choose one of {', '.join(NAMES)}")
    kind = torch.device(device).type
    if name == "auto":
        if kind == "cpu" and (dtype not in _OF_CPU or not is_compiled()):
            return "reference"
        if kind == "cuda" and (dtype == torch.float64 or _triton_unavailable_reason(device)):
            return "reference"
        name = kind
    if name == "cpu":
        if kind != "cpu":
            raise ValueError(
                "the cpu kernels run on the CPU only; use kernels=auto on other devices"
            )
        if dtype not in _OF_CPU:
            raise ValueError(
                "the cpu kernels compute in float32 and bf16 only; use kernels=reference otherwise"
            )
        if not is_compiled():
            raise ValueError(
                "the cpu kernels are not built here; build them with `pip install -e .`, or use "
                "kernels=reference"
            )
        return _OF_CPU[dtype]
    if name == "cuda" and dtype == torch.float64:
        raise ValueError(
            "the cuda kernels compute in 32 and 16 bits; use kernels=reference for float64"
        )
    if name == "cuda" and (reason := _triton_unavailable_reason(device)):
        raise ValueError(f"the cuda kernels cannot run here: {reason}; use kernels=auto")
    return name


def _triton_unavailable_reason(device: str) -> str:
    """Return why the Triton kernels cannot run on a device, empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return "they need an NVIDIA GPU, or TRITON_INTERPRET=1 to run slowly on the CPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "they need a GPU of compute capability 8.0 or more"
    return ""


@functools.cache
def load(name: str) -> KernelSet:
    """Import a kernel set by a name that ``choose`` returned."""
    if name == "reference":
        from backends.sscn.reference import REFERENCE

        return REFERENCE
    if name == "cpu":
        from backends.sscn.cpu.kernel_set import FLOAT32

        return FLOAT32
    if name == "cpu.bf16":
        from backends.sscn.cpu.kernel_set import BFLOAT16

        return BFLOAT16
    if name == "cuda":
        from backends.sscn.cuda import CUDA

        return CUDA
    raise ValueError(f"there is no kernel set {name!r}")
