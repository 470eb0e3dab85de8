"""spconv-triton (Apache-2.0), spconv's operations in Triton, behind the contract; CUDA only."""

from __future__ import annotations

from typing import Any

import spconv_triton.constants
import spconv_triton.pytorch.functional
import torch
from spconv_triton.core import ConvAlgo

from backends.contract import Capabilities, Kind
from backends.spconv_interface import SpconvInterface

ALGORITHMS = ("MaskImplicitGemm", "MaskSplitImplicitGemm", "Native")


def probe() -> Capabilities:
    """Return the capabilities of spconv-triton on this machine."""
    on_cuda = torch.cuda.is_available()
    return Capabilities(
        version=spconv_triton.__version__,
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32", "tf32", "fp16")} if on_cuda else {},
        kinds=frozenset(Kind),
        options={"algorithm": ALGORITHMS},
        missing="" if on_cuda else "a CUDA device: it has no operation for the CPU",
    )


class Backend(SpconvInterface):
    """spconv-triton for one precision and dimension."""

    name = "spconv-triton"
    layers = spconv_triton.pytorch
    functions = spconv_triton.pytorch.functional

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.algorithm = ConvAlgo[options["algorithm"]]
        self.cast = torch.float16 if precision == "fp16" else None
        spconv_triton.constants.SPCONV_ALLOW_TF32 = precision == "tf32"

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and of the engine."""
        return super().precision_readback() | {
            "spconv_triton.constants.SPCONV_ALLOW_TF32": (
                spconv_triton.constants.SPCONV_ALLOW_TF32
            ),
            "spconv_triton.algorithm": self.algorithm.name,
        }
