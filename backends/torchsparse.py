"""torchsparse 2.1 (MIT) behind the contract; on the CPU, the adapter builds the kernel maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from backends import kernel_layouts, minkowski_layout
from backends.contract import Capabilities, Kind
from backends.profiling_hooks import ProfilingObserver, observing_maps
from backends.torchsparse_interface import NativeConvolution, TorchsparseInterface


def _import_without_cuda() -> Any:
    """Import torchsparse, which queries the capability of the GPU even if there is none."""
    query = torch.cuda.get_device_capability
    if not torch.cuda.is_available():
        torch.cuda.get_device_capability = lambda *_: (0, 0)
    try:
        import torchsparse
        import torchsparse.backend
        import torchsparse.nn
    finally:
        torch.cuda.get_device_capability = query
    return torchsparse


torchsparse = _import_without_cuda()
tsfunctional = torchsparse.nn.functional

DATAFLOWS = ("ImplicitGEMM", "GatherScatter", "FetchOnDemand")


def probe() -> Capabilities:
    """Return the capabilities of this build of torchsparse on this machine."""
    on_cuda = torch.cuda.is_available() and hasattr(torchsparse.backend, "hash_cuda")
    precisions: dict[str, tuple[str, ...]] = {"cpu": ("fp32",)}
    if on_cuda:
        precisions["cuda"] = ("fp32", "tf32", "fp16")
    return Capabilities(
        version=torchsparse.__version__,
        devices=("cpu", "cuda") if on_cuda else ("cpu",),
        precisions=precisions,
        dims=(3,),
        options={"dataflow": DATAFLOWS if on_cuda else ("GatherScatter",)},
        note="on the CPU it has no kernel map of its own: its times there are its matrix products "
        "with a map that this adapter builds",
    )


def kernel_map_on_cpu(
    coords: Tensor,
    input_node_num: int,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> dict[str, Any]:
    """Build a map for the GatherScatter dataflow, with the engine's own hash functions.

    This replaces ``build_kernel_map``, both modes of which call functions that only a CUDA build
    has. The hash functions of the CPU expect the batch index last.
    """
    coarse = coords
    if max(stride) > 1:
        coarse = tsfunctional.spdownsample(
            coords, stride, kernel_size, 0, None, downsample_mode="minkowski"
        )
    queries = coarse.roll(-1, 1)
    queries[:, :3] *= torch.tensor(stride, dtype=queries.dtype)
    offsets = torchsparse.nn.utils.get_kernel_offsets(kernel_size)
    inputs = tsfunctional.sphash(coords.roll(-1, 1))
    neighbours = tsfunctional.sphash(queries, offsets)  # (K, N_out)
    rows = torch.arange(len(inputs))
    found = torchsparse.backend.hash_query_cpu(neighbours.view(-1), inputs, rows)
    found = found.view(neighbours.shape)
    tap, row_out = found.nonzero(as_tuple=True)  # rows are counted from one, zero means none
    unused = dict.fromkeys(("input_mask", "output_mask", "hashmap_keys", "hashmap_vals"))
    return unused | {
        "nbmaps": torch.stack([found[tap, row_out] - 1, row_out], 1),
        "nbsizes": (found > 0).sum(1),
        "sizes": (input_node_num, len(coarse)),
        "coords": coarse,
        "spatial_range": None,
    }


class Convolution(NativeConvolution):
    """A convolution of torchsparse, in the type of the precision policy."""

    def forward(self, x: Any) -> Any:
        """Convolve; the engine computes in the type of its input."""
        return self.native(x if self.cast is None else replace(x, x.feats.to(self.cast)))


def replace(x: Any, rows: Tensor) -> Any:
    """Return the tensor with other features and the same maps."""
    out = torchsparse.SparseTensor(rows, x.coords, x.stride, x.spatial_range)
    out._caches = x._caches
    return out


class Backend(TorchsparseInterface):
    """torchsparse for one device and precision."""

    name = "torchsparse"
    layer_class = torchsparse.nn.Conv3d

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self.cast = torch.float16 if precision == "fp16" else None
        torchsparse.backends.allow_tf32 = precision == "tf32"
        config = tsfunctional.conv_config.get_default_conv_config()
        config.dataflow = tsfunctional.Dataflow[options["dataflow"]]
        if device == "cpu":
            tsfunctional.build_kernel_map = kernel_map_on_cpu
            tsfunctional.transpose_kernel_map = lambda kernel_map, *_, **__: kernel_map
            config.kmap_mode = "hashmap"
        self.config = config
        tsfunctional.conv_config.set_global_conv_config(config)

    def precision_readback(self) -> dict[str, Any]:
        """Return the current settings of torch and torchsparse."""
        return super().precision_readback() | {
            "torchsparse.backends.allow_tf32": torchsparse.backends.allow_tf32,
            "torchsparse.backends.allow_fp16": torchsparse.backends.allow_fp16,
            "torchsparse.dataflow": self.config.dataflow.name,
        }

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Return a tensor with empty caches."""
        volume = (batch_size, *[spatial_size] * self.dim)
        return torchsparse.SparseTensor(
            features.contiguous(), sites.contiguous(), spatial_range=volume
        )

    def with_features(self, x: Any, features: Tensor) -> Any:
        """Return other features with the same caches, which hold the maps."""
        return replace(x, features)

    def features(self, x: Any) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        features: Tensor = x.feats
        return features

    def rows(self, x: Any) -> Tensor:
        """Return the rows."""
        features: Tensor = x.feats
        return features

    def replace(self, x: Any, rows: Tensor) -> Any:
        """Return other rows on the same sites, with the same caches."""
        return replace(x, rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution."""
        native = self.native_convolution(kind, in_channels, out_channels, kernel_size)
        return Convolution(native, self.cast)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k), or (in, out, *k) for the inverse, into (K, in, out).

        The first axis of an odd kernel varies fastest; of an even kernel, the last.
        """
        if kind is Kind.SUBMANIFOLD:
            return minkowski_layout.from_canonical(kind, weight)
        return kernel_layouts.to_offsets_first(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, *k) or (out, in, K); the inverse has (in, out) first."""
        if kind is Kind.SUBMANIFOLD:
            return minkowski_layout.to_canonical(kind, weight, self.dim)
        return kernel_layouts.from_offsets_first(kind, weight)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of maps to a profiler."""
        with observing_maps(observer, (tsfunctional, "build_kernel_map")):
            yield
