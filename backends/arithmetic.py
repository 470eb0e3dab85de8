"""Torch's own arithmetic knobs: set for a precision policy, and read back."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def set_torch_knobs(precision: str) -> None:
    """Set every knob of torch that changes the arithmetic of float32 operations."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a network runs under a 16-bit policy; empty for the others."""
    dtype = _AUTOCAST.get(precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=dtype)


def readback() -> dict[str, Any]:
    """Return torch's knobs as they stand."""
    return {
        "torch.backends.cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "torch.float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.num_threads": torch.get_num_threads(),
    }


class TorchArithmetic:
    """What every adapter begins with: its device, precision and dimension, and torch's knobs set.

    Parameters
    ----------
    dim : int
    device : str
    precision : str
        As in the contract; the knobs that change torch's own arithmetic are set accordingly.
    options : dict
        For the adapters that derive from it.
    """

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        self.dim = dim
        self.device = device
        self.precision = precision
        set_torch_knobs(precision)

    def precision_readback(self) -> dict[str, Any]:
        """Read torch's knobs back."""
        return readback()
