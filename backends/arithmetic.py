"""Torch's settings of floating-point arithmetic: set for a precision policy, and read back."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def set_torch_knobs(precision: str) -> None:
    """Set every torch setting that changes the arithmetic of float32 operations."""
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
    """Return the current values of torch's settings."""
    return {
        "torch.backends.cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "torch.float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.num_threads": torch.get_num_threads(),
    }


class TorchArithmetic:
    """Base class of adapters: stores their attributes and sets torch's arithmetic.

    Parameters
    ----------
    dim : int
    device : str
    precision : str
        As in the contract. Torch's settings are those of the precision.
    options : dict
        Not used here; derived classes use it.
    """

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        self.dim = dim
        self.device = device
        self.precision = precision
        set_torch_knobs(precision)

    def precision_readback(self) -> dict[str, Any]:
        """Return the current values of torch's settings."""
        return readback()
