"""spconv 2.x (Apache-2.0) behind the contract, with workarounds for defects of its CPU wheel."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from backends.contract import Capabilities, Kind
from backends.spconv_interface import SpconvInterface

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'locale.getdefaultlocale'", DeprecationWarning)
    import spconv.constants
    import spconv.pytorch.functional
    from spconv.core import ConvAlgo
    from spconv.cppconstants import CPU_ONLY_BUILD
    from spconv.pytorch import ops

ALGORITHMS = ("MaskImplicitGemm", "MaskSplitImplicitGemm", "Native")
SCATTER = ("one-thread", "as-shipped")


def probe() -> Capabilities:
    """Return the capabilities of this build of spconv on this machine."""
    algorithms = {"algorithm": ("Native",) if CPU_ONLY_BUILD else ALGORITHMS}
    on_cuda = not CPU_ONLY_BUILD and torch.cuda.is_available()
    return Capabilities(
        version=spconv.__version__,
        devices=("cpu", "cuda") if on_cuda else ("cpu",),
        precisions={"cpu": ("fp32", "fp64")}
        | ({"cuda": ("fp32", "tf32", "fp16")} if on_cuda else {}),
        kinds=frozenset(Kind),
        options=algorithms | {"scatter": SCATTER},
        note="on the CPU its scatter runs on one thread: it has a data race with more",
    )


class _SerialScatter:
    """spconv's operations, with the one that has a data race restricted to one thread.

    ``scatter_add_cpu`` captures its loop pointers by reference and shares them between OpenMP
    threads. With two or more threads, forward and backward results are wrong and differ from call
    to call.
    """

    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.serial = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operations, name)

    def scatter_add_cpu(self, out: Any, values: Any, rows: Any) -> None:
        """Add rows, on one thread if ``serial``."""
        threads = torch.get_num_threads()
        restrict = self.serial and threads > 1
        if restrict:
            torch.set_num_threads(1)
        try:
            self.operations.scatter_add_cpu(out, values, rows)
        finally:
            if restrict:
                torch.set_num_threads(threads)


ops.SpconvOps = _SerialScatter(ops.SpconvOps)
if not torch.cuda.is_available():
    # The backward pass requests the current CUDA stream, which raises where torch has no CUDA.
    ops.get_current_stream = lambda: 0


class Backend(SpconvInterface):
    """spconv for one device, precision and dimension."""

    name = "spconv"
    layers = spconv.pytorch
    functions = spconv.pytorch.functional

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.algorithm = ConvAlgo.Native if device == "cpu" else ConvAlgo[options["algorithm"]]
        self.cast = torch.float16 if precision == "fp16" else None
        spconv.constants.SPCONV_ALLOW_TF32 = precision == "tf32"
        ops.SpconvOps.serial = options["scatter"] == "one-thread"

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and spconv."""
        return super().precision_readback() | {
            "spconv.constants.SPCONV_ALLOW_TF32": spconv.constants.SPCONV_ALLOW_TF32,
            "spconv.algorithm": self.algorithm.name,
            "spconv.serial_scatter": ops.SpconvOps.serial,
        }
