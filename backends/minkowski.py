"""MinkowskiEngine 0.5.4 (MIT) behind the contract."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from backends import minkowski_layout
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, NormConfig, Unsupported
from backends.norm import norm_parameters
from backends.profiling_hooks import ProfilingObserver, replaced

# The engine multiplies with OpenBLAS, which reads its thread count when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(torch.get_num_threads()))
# Without this variable, the engine uses 16 threads on machines with more than 16 processors.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
if not hasattr(collections, "Sequence"):  # the engine uses this name, which Python 3.10 removed
    collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The MinkowskiEngine was compiled with CPU_ONLY flag")
    import MinkowskiEngine as me


def probe() -> Capabilities:
    """Return the capabilities of this build of MinkowskiEngine on this machine."""
    on_cuda = me.is_cuda_available() and torch.cuda.is_available()
    precisions = {"cpu": ("fp32", "fp64")} | ({"cuda": ("fp32", "fp64")} if on_cuda else {})
    return Capabilities(
        version=me.__version__,
        devices=("cpu", "cuda") if on_cuda else ("cpu",),
        precisions=precisions,
        kinds=frozenset(Kind),
    )


class Backend(TorchArithmetic):
    """MinkowskiEngine for one device, precision and dimension."""

    name = "minkowski"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        self._requested_maps: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()

    def precision_readback(self) -> dict[str, Any]:
        """Return torch's settings and the threads of OpenBLAS; the engine itself has none."""
        return super().precision_readback() | {
            "OPENBLAS_NUM_THREADS": os.environ["OPENBLAS_NUM_THREADS"]
        }

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> me.SparseTensor:
        """Return a tensor with a new coordinate manager; without sites it would crash."""
        if len(sites) == 0:
            raise Unsupported("MinkowskiEngine crashes on a batch without sites")
        return me.SparseTensor(features.contiguous(), coordinates=sites.contiguous())

    def with_features(self, x: me.SparseTensor, features: Tensor) -> me.SparseTensor:
        """Return other features with the same coordinate manager, which holds the maps."""
        return me.SparseTensor(
            features,
            coordinate_map_key=x.coordinate_map_key,
            coordinate_manager=x.coordinate_manager,
        )

    def features(self, x: me.SparseTensor) -> Tensor:
        """Return the rows; at the finest level they are in input order."""
        features: Tensor = x.F
        return features

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution of any kind; the engine finds the level from the tensor stride."""
        if kind in (Kind.STRIDED, Kind.INVERSE) and kernel_size != 2:
            raise Unsupported("strided and inverse convolutions have kernel 2 and stride 2")
        layer = (
            me.MinkowskiConvolutionTranspose if kind is Kind.INVERSE else me.MinkowskiConvolution
        )
        with warnings.catch_warnings():
            # The engine instantiates autograd functions, which torch has deprecated.
            warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
            result: nn.Module = layer(
                in_channels,
                out_channels,
                kernel_size=kernel_size,
                stride=2 if kind in (Kind.STRIDED, Kind.INVERSE) else 1,
                expand_coordinates=kind is Kind.ORDINARY,
                dimension=self.dim,
            )
            return result

    def norm(self, config: NormConfig) -> nn.Module:
        """Return the engine's normalisation and leaky ReLU."""
        norm = me.MinkowskiBatchNorm(config.channels, eps=config.eps, momentum=config.momentum)
        activation = me.MinkowskiLeakyReLU(config.slope) if config.slope else me.MinkowskiReLU()
        return nn.Sequential(norm, activation)

    def linear(self, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
        """Return the engine's linear layer."""
        layer: nn.Module = me.MinkowskiLinear(in_channels, out_channels, bias=bias)
        return layer

    def add(self, a: me.SparseTensor, b: me.SparseTensor) -> me.SparseTensor:
        """Add the rows."""
        return a + b

    def cat(self, a: me.SparseTensor, b: me.SparseTensor) -> me.SparseTensor:
        """Concatenate the rows."""
        return me.cat(a, b)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, nn.Sequential):
            norm = layer[0]
            assert isinstance(norm, me.MinkowskiBatchNorm)
            return norm_parameters(norm.bn)
        if isinstance(layer, me.MinkowskiLinear):
            return dict(layer.linear.named_parameters())
        return {"weight": layer.kernel}  # type: ignore[dict-item]

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (out, in, *k) or (in, out, *k) into (K, in, out); axis 0 of k varies fastest."""
        if kind is Kind.LINEAR:
            return weight
        return minkowski_layout.from_canonical(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn (K, in, out) into (out, in, *k) or (in, out, *k); axis 0 of k varies fastest."""
        if kind is Kind.LINEAR:
            return weight
        return minkowski_layout.to_canonical(kind, weight, self.dim)

    @contextlib.contextmanager
    def observe(self, observer: ProfilingObserver) -> Iterator[None]:
        """Report the construction of maps to a profiler.

        A convolution builds its map inside. Therefore each map is requested before the first
        convolution that uses it. The engine returns a copy, which takes a hundredth of the time
        of building the map.
        """

        def with_map_first(forward: Callable[..., Any]) -> Callable[..., Any]:
            build = observer.within("map")(_build_map)

            def convolve(layer: Any, x: me.SparseTensor, *arguments: Any, **named: Any) -> Any:
                generator = layer.kernel_generator
                key = (
                    tuple(x.coordinate_map_key.get_tensor_stride()),
                    tuple(generator.kernel_size),
                    layer.is_transpose,
                )
                requested = self._requested_maps.setdefault(x.coordinate_manager, set())
                if key not in requested and not generator.expand_coordinates:
                    requested.add(key)
                    build(x, generator, layer.is_transpose)
                return forward(layer, x, *arguments, **named)

            return convolve

        with (
            replaced(me.MinkowskiConvolution, "forward", with_map_first),
            replaced(me.MinkowskiConvolutionTranspose, "forward", with_map_first),
        ):
            yield


def _build_map(x: me.SparseTensor, generator: Any, transposed: bool) -> None:
    """Let the coordinate manager build the map of a convolution, and missing output sites."""
    manager, source = x.coordinate_manager, x.coordinate_map_key
    stride = list(generator.kernel_stride)
    if transposed:
        finer = [size // by for size, by in zip(source.get_tensor_stride(), stride, strict=True)]
        target = manager._get_coordinate_map_key(finer)
    else:
        target = manager.stride(source, stride)
    size = list(generator.kernel_size)
    manager.kernel_map(source, target, stride, size, 1, is_transpose=transposed)
