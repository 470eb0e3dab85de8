"""FlexGEMM (MIT), TRELLIS.2's Triton kernels, behind the contract; CUDA and ROCm only.

It has submanifold and strided convolutions. The inverse convolution here is its strided one with
the two directions of the neighbour map exchanged.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import flex_gemm
import flex_gemm.kernels.cuda
import flex_gemm.kernels.triton.spconv.config
import flex_gemm.ops.spconv
import torch
from torch import Tensor, nn

from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters
from backends.profiling_hooks import ProfilingObserver, observing_maps

# Without a mask, the gradient of the weights needs a power of two of input channels.
ALGORITHMS = ("masked_implicit_gemm_splitk", "masked_implicit_gemm")

ONE, TWO, NO_PADDING = (1, 1, 1), (2, 2, 2), (0, 0, 0)


def probe() -> Capabilities:
    """Return the capabilities of FlexGEMM on this machine."""
    on_cuda = torch.cuda.is_available()
    tf32 = () if torch.version.hip else ("tf32",)
    return Capabilities(
        version=importlib.metadata.version("flex_gemm"),
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32", *tf32, "fp16", "bf16")} if on_cuda else {},
        dims=(3,),
        options={"algorithm": ALGORITHMS},
        missing="" if on_cuda else "a CUDA or ROCm device: it has no operation for the CPU",
        note="its inverse convolution is its strided one with the map's directions exchanged",
    )


@dataclass
class Levels:
    """The sites of all levels computed so far, and the neighbour maps; made at their first use."""

    sites: list[Tensor]
    spatial_size: int
    batch_size: int
    maps: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def shape(self, level: int, channels: int) -> torch.Size:
        """Return the shape of the dense volume of a level."""
        return torch.Size((self.batch_size, channels, *[self.spatial_size >> level] * 3))

    def strided(self, level: int) -> Any:
        """Return the map from a level to the next coarser one, in both directions."""
        key = (Kind.STRIDED, level)
        if key not in self.maps:
            self.maps[key] = self._make_strided(level)
        return self.maps[key]

    def _make_strided(self, level: int) -> Any:
        function = flex_gemm.ops.spconv.SparseConv3dFunction
        sites, shape = self.sites[level], self.shape(level, 1)
        geometry = (TWO, TWO, NO_PADDING, ONE)
        if level + 1 == len(self.sites):
            self.sites.append(function._get_output_coords(sites, shape, *geometry))
        # The inverse convolution needs the backward direction in inference too.
        both = True
        return function._compute_neighbor_cache(
            sites, self.sites[level + 1], shape, *geometry, both
        )

    def inverse(self, level: int) -> Any:
        """Return the map of ``strided`` with its directions exchanged."""
        key = (Kind.INVERSE, level)
        if key not in self.maps:
            made = self.strided(level)
            self.maps[key] = type(made)(
                neighbor_map=made["neighbor_map_bwd"],
                neighbor_map_bwd=made["neighbor_map"],
                gray_code=made["gray_code_bwd"],
                gray_code_bwd=made["gray_code"],
                sorted_idx=made["sorted_idx_bwd"],
                sorted_idx_bwd=made["sorted_idx"],
                valid_signal_i=made["valid_signal_o"],
                valid_signal_o=made["valid_signal_i"],
                valid_signal_seg=made["valid_signal_seg"],
            )
        return self.maps[key]


@dataclass(frozen=True)
class LevelTensor:
    """Rows of the sites of one level."""

    rows: Tensor
    levels: Levels
    level: int


class Convolution(nn.Module):
    """A convolution of FlexGEMM, in the type of the precision policy."""

    def __init__(
        self,
        kind: Kind,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        cast: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.cast = cast
        self.weight = nn.Parameter(torch.zeros(out_channels, *[kernel_size] * 3, in_channels))

    def forward(self, x: LevelTensor) -> LevelTensor:
        """Convolve; the kind of layer determines the output sites."""
        dtype = self.cast or self.weight.dtype
        rows, weight = x.rows.to(dtype).contiguous(), self.weight.to(dtype)
        bias = None
        if torch.is_grad_enabled():
            # The engine's backward pass reads an attribute of the bias even if there is none.
            bias = weight.new_zeros(len(weight))
        else:
            weight = weight.detach()  # the engine prepares a backward pass for any other weight
        if self.kind is Kind.SUBMANIFOLD:
            return replace(x, rows=self._submanifold(x, rows, weight, bias))
        levels, fine = x.levels, x.level - (self.kind is Kind.INVERSE)
        cache = levels.inverse(fine) if self.kind is Kind.INVERSE else levels.strided(fine)
        to = fine + (self.kind is Kind.STRIDED)
        rows, _, _ = flex_gemm.ops.spconv.sparse_conv3d(
            rows,
            levels.sites[x.level],
            levels.shape(x.level, rows.shape[1]),
            weight,
            bias,
            neighbor_cache=cache,
            out_coords=levels.sites[to],
            stride=TWO,
        )
        return LevelTensor(rows, levels, to)

    def _submanifold(
        self, x: LevelTensor, rows: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        levels = x.levels
        both, forward_only = (Kind.SUBMANIFOLD, x.level), (Kind.SUBMANIFOLD, x.level, "forward")
        key = forward_only if bias is None and both not in levels.maps else both
        rows, levels.maps[key] = flex_gemm.ops.spconv.sparse_submanifold_conv3d(
            rows,
            levels.sites[x.level],
            levels.shape(x.level, rows.shape[1]),
            weight,
            bias,
            neighbor_cache=levels.maps.get(key),
        )
        return rows


class Backend(TorchArithmetic, PointwiseByTorch):
    """FlexGEMM for one precision."""

    name = "flex-gemm"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.cast = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self.algorithm = options["algorithm"]
        flex_gemm.ops.spconv.set_algorithm(self.algorithm)
        flex_gemm.kernels.triton.spconv.config.allow_tf32 = precision == "tf32"

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and of the engine."""
        return super().precision_readback() | {
            "flex_gemm.kernels.triton.spconv.config.allow_tf32": (
                flex_gemm.kernels.triton.spconv.config.allow_tf32
            ),
            "flex_gemm.ops.spconv.ALGORITHM": flex_gemm.ops.spconv.ALGORITHM,
        }

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> LevelTensor:
        """Return a tensor without maps; without sites the engine takes the logarithm of zero."""
        if len(sites) == 0:
            raise Unsupported("FlexGEMM raises an error on a batch without sites")
        levels = Levels([sites.contiguous()], spatial_size, batch_size)
        return LevelTensor(features, levels, 0)

    def with_features(self, x: LevelTensor, features: Tensor) -> LevelTensor:
        """Return other features with the same maps."""
        return replace(x, rows=features)

    def features(self, x: LevelTensor) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        return x.rows

    def rows(self, x: LevelTensor) -> Tensor:
        """Return the rows."""
        return x.rows

    def replace(self, x: LevelTensor, rows: Tensor) -> LevelTensor:
        """Return other rows on the same sites and maps."""
        return replace(x, rows=rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution."""
        expected = 3 if kind is Kind.SUBMANIFOLD else 2
        if kind is Kind.ORDINARY or kernel_size != expected:
            raise Unsupported(f"FlexGEMM: no {kind} convolution with kernel {kernel_size} here")
        return Convolution(kind, in_channels, out_channels, kernel_size, self.cast)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.weight}
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (out, *k, in)."""
        return kernel_layouts.to_channels_last(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, *k, in) into (out, in, *k), or (in, out, *k) for the inverse."""
        return kernel_layouts.from_channels_last(kind, weight)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of maps to a profiler."""
        kernels = flex_gemm.kernels.cuda
        names = (
            "hashmap_build_submanifold_conv_neighbour_map",
            "hashmap_build_sparse_conv_neighbour_map",
        )
        with observing_maps(observer, *((kernels, name) for name in names)):
            yield
