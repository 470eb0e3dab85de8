"""Base of the adapters of spconv and of engines with its programming interface.

Nothing here imports an engine: an adapter passes the engine's modules.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from backends import kernel_layouts
from backends.arithmetic import TorchArithmetic
from backends.contract import Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters
from backends.profiling_hooks import ProfilingObserver, observing_maps

_NUMBER = itertools.count()


class Convolution(nn.Module):
    """A convolution of the engine, whose kernel map is reused on the same sites."""

    def __init__(
        self, native: Any, functions: ModuleType, kind: Kind, cast: torch.dtype | None
    ) -> None:
        super().__init__()
        self.native = native
        self.functions = functions
        self.kind = kind
        self.cast = cast

    def forward(self, x: Any) -> Any:
        """Convolve.

        The engine's layers raise if a strided map is to be reused. Therefore, if the map exists,
        the engine's function is called instead. The layers also copy the dictionary of maps. Here,
        all tensors of a network share one dictionary, so that a warm pass finds the maps of the
        pass before.
        """
        map_exists = self.native.indice_key in x.indice_dict
        if self.cast is not None:
            # In evaluation the implicit GEMM ignores autocast. Convert explicitly in both modes.
            x = x.replace_feature(x.features.to(self.cast))
        if map_exists and self.kind in (Kind.STRIDED, Kind.ORDINARY):
            return self._strided(x)
        if self.cast is None:
            out = self.native(x)
        else:
            weights = {"weight": self.native.weight.to(self.cast)}
            with torch.autocast("cuda", enabled=False):
                out = torch.func.functional_call(self.native, weights, (x,))
        x.indice_dict.update(out.indice_dict)
        out.indice_dict = x.indice_dict
        return out

    def _strided(self, x: Any) -> Any:
        weight = self.native.weight.to(x.features.dtype)
        maps = x.indice_dict[self.native.indice_key]
        sites = len(maps.out_indices)
        with torch.autocast("cuda", enabled=False):
            if self.native.algo.name == "Native":
                rows = self.functions.indice_conv(
                    x.features,
                    weight,
                    maps.indice_pairs,
                    maps.indice_pair_num,
                    sites,
                    self.native.algo,
                )
            else:
                rows = self.functions.implicit_gemm(
                    x.features,
                    weight,
                    maps.pair_fwd,
                    maps.pair_bwd,
                    maps.pair_mask_fwd_splits,
                    maps.pair_mask_bwd_splits,
                    maps.mask_argsort_fwd_splits,
                    maps.mask_argsort_bwd_splits,
                    sites,
                    maps.masks,
                    self.training,
                    False,
                )
        out = x.replace_feature(rows)
        out.indices = maps.out_indices
        out.spatial_shape = maps.out_spatial_shape
        return out


class SpconvInterface(TorchArithmetic, PointwiseByTorch):
    """The contract by spconv's programming interface; an adapter sets the attributes.

    Attributes
    ----------
    dim : int
        2 or 3.
    layers, functions : module
        ``spconv.pytorch`` and ``spconv.pytorch.functional``, or their equivalents.
    algorithm : enum
        The member of ``ConvAlgo``.
    cast : torch.dtype or None
        Type of rows and weights under a 16-bit policy.
    """

    dim: int
    layers: ModuleType
    functions: ModuleType
    algorithm: Any
    cast: torch.dtype | None

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Return a tensor without maps; the engine misreads sites that are not contiguous."""
        return self.layers.SparseConvTensor(
            features.contiguous(), sites.contiguous(), [spatial_size] * self.dim, batch_size
        )

    def with_features(self, x: Any, features: Tensor) -> Any:
        """Return other features with the same maps."""
        return x.replace_feature(features)

    def features(self, x: Any) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        result: Tensor = x.features
        return result

    def rows(self, x: Any) -> Tensor:
        """Return the rows."""
        result: Tensor = x.features
        return result

    def replace(self, x: Any, rows: Tensor) -> Any:
        """Return other rows on the same sites and maps."""
        return x.replace_feature(rows)

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution of any kind."""
        three, layers = self.dim == 3, self.layers
        common: dict[str, Any] = {"bias": False, "algo": self.algorithm}
        if kind in (Kind.STRIDED, Kind.INVERSE) and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        if kind is Kind.SUBMANIFOLD:
            layer = layers.SubMConv3d if three else layers.SubMConv2d
            key = f"submanifold-{level}-{kernel_size}"
        elif kind is Kind.INVERSE:
            layer = layers.SparseInverseConv3d if three else layers.SparseInverseConv2d
            key = f"strided-{level}"
        else:
            layer = layers.SparseConv3d if three else layers.SparseConv2d
            if kind is Kind.STRIDED:
                common["stride"] = 2
                key = f"strided-{level}"
            else:
                common["padding"] = kernel_size // 2
                key = f"ordinary-{next(_NUMBER)}"  # the sites differ from layer to layer
        native = layer(in_channels, out_channels, kernel_size, indice_key=key, **common)
        return Convolution(native, self.functions, kind, self.cast)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.native.weight}
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
        operations = self.layers.ops
        names = ("get_indice_pairs", "get_indice_pairs_implicit_gemm")
        with observing_maps(observer, *((operations, name) for name in names)):
            yield
