"""Spira (Apache-2.0) behind the contract; inference on CUDA only.

This adapter was written from the source and has not run yet. Its results, like those of every
engine, are compared with float64 before a time counts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import spira
import spira.nn
import spira.nn.functional
import torch
from torch import Tensor, nn

from backends import kernel_layouts
from backends.contract import Capabilities, Kind, Unsupported
from backends.profiling_hooks import ProfilingObserver, observing_maps
from backends.torchsparse_interface import NativeConvolution, TorchsparseInterface

# The engine's own default, gather-scatter, is compiled for some widths only: 48 and 80 are not
# among them.
DATAFLOWS = {"weight-stationary": 1, "output-stationary": 0, "gather-scatter": 2}

X_BITS = 24
"""Bits of the first coordinate in the packed coordinates of 64 bits."""


def probe() -> Capabilities:
    """Return the capabilities of Spira on this machine."""
    on_cuda = torch.cuda.is_available()
    return Capabilities(
        version=importlib.metadata.version("spira"),
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32", "fp16")} if on_cuda else {},
        dims=(3,),
        training=False,
        options={"dataflow": tuple(DATAFLOWS)},
        missing="" if on_cuda else "a CUDA device: it has no operation for the CPU",
        note="has no batches: events lie side by side along the first axis; orders rows by site",
    )


@dataclass(frozen=True)
class SortedTensor:
    """The engine's tensor, the maps of its input, and the order of the input."""

    voxels: Any  # SparseTensor
    maps: Any  # KernelMapCache
    input_of_row: Tensor  # (N,) input row of each row of the finest level
    row_of_input: Tensor

    @property
    def finest(self) -> bool:
        """Whether the sites are those of the input."""
        stride: tuple[int, ...] = self.voxels._stride
        return max(stride) == 1


class Convolution(NativeConvolution):
    """A convolution of Spira, in the type of the precision policy."""

    def forward(self, x: SortedTensor) -> SortedTensor:
        """Convolve with the maps of the input."""
        spira.set_kernel_map_cache(self.native, x.maps)
        if self.cast is None:
            return replace(x, voxels=self.native(x.voxels))
        kernel: Any = self.native.kernel
        parameters = {"kernel": kernel.to(self.cast)}
        given = with_rows(x.voxels, x.voxels._features.to(self.cast))
        return replace(x, voxels=torch.func.functional_call(self.native, parameters, (given,)))


def with_rows(voxels: Any, rows: Tensor) -> Any:
    """Return the engine's tensor with other features on the same sites."""
    return spira.SparseTensor(voxels._coordinates, rows, voxels._stride)


class Backend(TorchsparseInterface):
    """Spira for one precision."""

    name = "spira"
    layer_class = spira.nn.SparseConv

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.cast = torch.float16 if precision == "fp16" else None
        self.dataflow = options["dataflow"]

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and of the engine."""
        return super().precision_readback() | {"spira.dataflow": self.dataflow}

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> SortedTensor:
        """Return a tensor with no maps; the engine expects its rows in the order of sites.

        Between two events lies an empty volume, so that no kernel reaches from one to the other.
        """
        pitch = 2 * spatial_size
        if batch_size * pitch > 1 << X_BITS:
            raise Unsupported(f"Spira: {batch_size} events of {spatial_size} voxels are too many")
        places = sites[:, 1:].clone()
        places[:, 0] += pitch * sites[:, 0]
        packed, input_of_row = spira.nn.functional.flat_sort(places, True)
        row_of_input = torch.empty_like(input_of_row)
        row_of_input[input_of_row] = torch.arange(len(sites), device=sites.device)
        voxels = spira.SparseTensor(packed, features[input_of_row])
        return SortedTensor(voxels, spira.nn.KernelMapCache(), input_of_row, row_of_input)

    def with_features(self, x: SortedTensor, features: Tensor) -> SortedTensor:
        """Return other features with the same maps."""
        return self.replace(x, features[x.input_of_row] if x.finest else features)

    def features(self, x: SortedTensor) -> Tensor:
        """Return the rows; at the finest level, in input order."""
        rows = self.rows(x)
        return rows[x.row_of_input] if x.finest else rows

    def rows(self, x: SortedTensor) -> Tensor:
        """Return the rows in the order of sites."""
        features: Tensor = x.voxels._features
        return features

    def replace(self, x: SortedTensor, rows: Tensor) -> SortedTensor:
        """Return other rows on the same sites and maps."""
        return replace(x, voxels=with_rows(x.voxels, rows))

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution."""
        native: Any = self.native_convolution(kind, in_channels, out_channels, kernel_size)
        native.tunable_config["map_dataflow"] = DATAFLOWS[self.dataflow]
        return Convolution(native, self.cast)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out).

        The last axis of the kernel varies fastest, but for the output-stationary dataflow, where
        it varies slowest.
        """
        if self.dataflow == "output-stationary" and kind is not Kind.LINEAR:
            weight = weight.movedim(-1, 2)
        return kernel_layouts.to_offsets_first(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, *k) or (out, in, K); the inverse has (in, out) first."""
        weight = kernel_layouts.from_offsets_first(kind, weight)
        if self.dataflow == "output-stationary" and kind is not Kind.LINEAR:
            side = 3 if kind is Kind.SUBMANIFOLD else 2
            weight = weight.reshape(*weight.shape[:2], side, side, side).movedim(2, -1)
        return weight

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of maps to a profiler."""
        with observing_maps(observer, (spira.nn.functional, "build_kmap")):
            yield
