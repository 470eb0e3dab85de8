"""spconv 2.x (Apache-2.0) behind the contract, with the defects of its CPU wheel handled."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from backends.arithmetic import readback, set_torch_knobs
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'locale.getdefaultlocale'", DeprecationWarning)
    import spconv.constants
    import spconv.pytorch as spnn
    from spconv.core import ConvAlgo
    from spconv.cppconstants import CPU_ONLY_BUILD
    from spconv.pytorch import functional as spfunctional
    from spconv.pytorch import ops

ALGORITHMS = ("MaskImplicitGemm", "MaskSplitImplicitGemm", "Native")
SCATTER = ("one-thread", "as-shipped")


def probe() -> Capabilities:
    """Report what this build of spconv does here."""
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
    """spconv's operations, with the one that has a data race kept on one thread.

    ``scatter_add_cpu`` captures its loop pointers by reference and shares them between OpenMP
    threads, so that with two or more of them forward and backward are wrong, differently each
    time.
    """

    def __init__(self, operations: Any) -> None:
        self.operations = operations
        self.serial = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operations, name)

    def scatter_add_cpu(self, out: Any, values: Any, rows: Any) -> None:
        """Add rows, on one thread if ``serial``."""
        threads = torch.get_num_threads()
        alone = self.serial and threads > 1
        if alone:
            torch.set_num_threads(1)
        try:
            self.operations.scatter_add_cpu(out, values, rows)
        finally:
            if alone:
                torch.set_num_threads(threads)


ops.SpconvOps = _SerialScatter(ops.SpconvOps)
if not torch.cuda.is_available():
    # Its backward pass asks for the current CUDA stream even on a CPU-only torch, and raises.
    ops.get_current_stream = lambda: 0


class Convolution(nn.Module):
    """One of spconv's convolutions, its kernel map kept for every later use of the same sites."""

    def __init__(self, native: Any, kind: Kind, cast: torch.dtype | None) -> None:
        super().__init__()
        self.native = native
        self.kind = kind
        self.cast = cast

    def forward(self, x: spnn.SparseConvTensor) -> spnn.SparseConvTensor:
        """Convolve; spconv's own layers rebuild a strided map, so a known one goes to its function.

        spconv copies its dictionary of maps at each layer; here all tensors of one network share
        one, which is what makes a warm pass find the maps of the pass before.
        """
        weight = self.native.weight
        if self.cast is not None:
            # Outside training spconv's implicit GEMM ignores autocast: convert here for all.
            x, weight = x.replace_feature(x.features.to(self.cast)), weight.to(self.cast)
        if self.kind in (Kind.STRIDED, Kind.ORDINARY) and self.native.indice_key in x.indice_dict:
            return self._strided(x, weight)
        with _without_autocast(self.cast):
            out = torch.func.functional_call(self.native, {"weight": weight}, (x,))
        x.indice_dict.update(out.indice_dict)
        out.indice_dict = x.indice_dict
        return out

    def _strided(self, x: spnn.SparseConvTensor, weight: Tensor) -> spnn.SparseConvTensor:
        known = x.indice_dict[self.native.indice_key]
        sites = len(known.out_indices)
        with _without_autocast(self.cast):
            if self.native.algo is ConvAlgo.Native:
                rows = spfunctional.indice_conv(
                    x.features,
                    weight,
                    known.indice_pairs,
                    known.indice_pair_num,
                    sites,
                    self.native.algo,
                )
            else:
                rows = spfunctional.implicit_gemm(
                    x.features,
                    weight,
                    known.pair_fwd,
                    known.pair_bwd,
                    known.pair_mask_fwd_splits,
                    known.pair_mask_bwd_splits,
                    known.mask_argsort_fwd_splits,
                    known.mask_argsort_bwd_splits,
                    sites,
                    known.masks,
                    self.training,
                    False,
                )
        out = x.replace_feature(rows)
        out.indices = known.out_indices
        out.spatial_shape = known.out_spatial_shape
        return out


def _without_autocast(cast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from converting again what the layer has converted itself."""
    return contextlib.nullcontext() if cast is None else torch.autocast("cuda", enabled=False)


class Backend(PointwiseByTorch):
    """spconv for one device, precision and dimension."""

    name = "spconv"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        self.dim = dim
        self.device = device
        self.precision = precision
        self.algorithm = ConvAlgo.Native if device == "cpu" else ConvAlgo[options["algorithm"]]
        self.cast = torch.float16 if precision == "fp16" else None
        set_torch_knobs(precision)
        spconv.constants.SPCONV_ALLOW_TF32 = precision == "tf32"
        ops.SpconvOps.serial = options["scatter"] == "one-thread"

    def precision_readback(self) -> dict[str, Any]:
        """Read torch's and spconv's knobs back."""
        return readback() | {
            "spconv.constants.SPCONV_ALLOW_TF32": spconv.constants.SPCONV_ALLOW_TF32,
            "spconv.algorithm": self.algorithm.name,
            "spconv.serial_scatter": ops.SpconvOps.serial,
        }

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> spnn.SparseConvTensor:
        """Make a tensor without maps; spconv misreads sites that are not contiguous in memory."""
        return spnn.SparseConvTensor(
            features.contiguous(), sites.contiguous(), [spatial_size] * self.dim, batch_size
        )

    def with_features(self, x: spnn.SparseConvTensor, features: Tensor) -> spnn.SparseConvTensor:
        """Keep the maps."""
        return x.replace_feature(features)

    def features(self, x: spnn.SparseConvTensor) -> Tensor:
        """Return the rows; inverse convolutions bring them back to input order."""
        return x.features

    def rows(self, x: spnn.SparseConvTensor) -> Tensor:
        """Return the rows."""
        return x.features

    def replace(self, x: spnn.SparseConvTensor, rows: Tensor) -> spnn.SparseConvTensor:
        """Keep the sites and their maps."""
        return x.replace_feature(rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution of any kind."""
        three = self.dim == 3
        common: dict[str, Any] = {"bias": False, "algo": self.algorithm}
        if kind in (Kind.STRIDED, Kind.INVERSE) and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        if kind is Kind.SUBMANIFOLD:
            layer = spnn.SubMConv3d if three else spnn.SubMConv2d
            key = f"submanifold-{level}-{kernel_size}"
        elif kind is Kind.INVERSE:
            layer = spnn.SparseInverseConv3d if three else spnn.SparseInverseConv2d
            key = f"strided-{level}"
        else:
            layer = spnn.SparseConv3d if three else spnn.SparseConv2d
            if kind is Kind.STRIDED:
                common["stride"] = 2
                key = f"strided-{level}"
            else:
                common["padding"] = kernel_size // 2
                key = f"ordinary-{level}-{kernel_size}"
        native = layer(in_channels, out_channels, kernel_size, indice_key=key, **common)
        return Convolution(native, kind, self.cast)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Name the layer's parameters canonically."""
        if isinstance(layer, Convolution):
            return {"weight": layer.native.weight}
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (out, *k, in)."""
        if kind is Kind.LINEAR:
            return weight
        return (weight.transpose(0, 1) if kind is Kind.INVERSE else weight).movedim(1, -1)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, *k, in) into (out, in, *k), or (in, out, *k) for the inverse."""
        if kind is Kind.LINEAR:
            return weight
        weight = weight.movedim(-1, 1)
        return weight.transpose(0, 1) if kind is Kind.INVERSE else weight
