"""The engine behind SPINE's layers: its choice, and its layers with parameters that SPINE owns."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backends import minkowski_layout, registry
from backends.contract import Backend, Kind, Unsupported, master_dtype

ENGINE = "SSCN_BENCH_SPINE_ENGINE"
PRECISION = "SSCN_BENCH_SPINE_PRECISION"


def chosen() -> str:
    """Return the name of the engine that the environment selects.

    Raises
    ------
    UnknownBackend
        If there is no such engine.
    """
    name = os.environ.get(ENGINE, "sscn")
    registry.module_name(name)
    return name


def of(rows: Tensor, dim: int) -> Engine:
    """Return the engine for rows of a device and type.

    Raises
    ------
    Unsupported
        If the engine is not installed, or has no such device, type or dimension.
    """
    if rows.dtype is torch.float64:
        precision = "fp64"
    elif rows.dtype is torch.float32:
        precision = os.environ.get(PRECISION, "fp32")
    else:
        raise Unsupported(f"features of sparse layers are float32 or float64, not {rows.dtype}")
    return _load(chosen(), dim, rows.device.type, precision)


@functools.cache
def _load(name: str, dim: int, device: str, precision: str) -> Engine:
    try:
        return Engine(registry.load(name, dim=dim, device=device, precision=precision))
    except ImportError as error:
        raise Unsupported(f"the engine {name} cannot be imported here: {error}") from error


class Engine:
    """An engine set up for a dimension, device and precision.

    Attributes
    ----------
    backend : Backend
        The engine.
    reverses_axes : bool
        Whether it gets sites with their spatial axes in reverse order. MinkowskiEngine's kernels
        need no copy then in an engine whose kernels differ from them in the order of the axes only.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._sums: dict[int, nn.Module] = {}
        self.reverses_axes = self._reads(minkowski_layout.to_reversed) and not self._reads(
            minkowski_layout.to_canonical
        )

    def _reads(self, layout: Callable[[Kind, Tensor, int], Tensor]) -> bool:
        """Return whether the engine uses a kernel of MinkowskiEngine in some layout as it is."""
        dim = self.backend.dim
        kernel = torch.empty(3**dim, 2, 5)
        native = self.backend.to_native(Kind.SUBMANIFOLD, layout(Kind.SUBMANIFOLD, kernel, dim))
        return native.contiguous().data_ptr() == kernel.data_ptr()

    def native_kernel(self, kind: Kind, kernel: Tensor) -> Tensor:
        """Return a kernel of MinkowskiEngine, (K, in, out), in the engine's layout."""
        layout = minkowski_layout.to_canonical
        if self.reverses_axes:
            layout = minkowski_layout.to_reversed
        return self.backend.to_native(kind, layout(kind, kernel, self.backend.dim))

    def count(self, x: Any) -> int:
        """Return the number of rows of the engine's tensor."""
        count = getattr(self.backend, "count", None)
        return len(self.backend.features(x)) if count is None else count(x)

    def sums_of_children(self, x: Any, channels: int, level: int) -> Any:
        """Return the engine's tensor of the next level, whose rows are the sums of their children.

        It is a strided convolution with the unit matrix at every tap.
        """
        if level not in self._sums:
            backend = self.backend
            layer = backend.convolution(Kind.STRIDED, channels, channels, 2, level)
            weight = backend.parameters(layer)["weight"]
            unit = torch.eye(channels, dtype=weight.dtype)
            taps = unit.reshape(channels, channels, *[1] * backend.dim)
            native = backend.to_native(
                Kind.STRIDED, taps.expand(channels, channels, *[2] * backend.dim)
            )
            with torch.no_grad():
                weight.copy_(native.reshape(weight.shape))
            layer = layer.to(backend.device, master_dtype(backend.precision))
            self._sums[level] = layer.requires_grad_(False).eval()
        with torch.no_grad():
            return self._sums[level](x)


class BoundLayer:
    """A layer of the engine whose parameters are tensors that another module owns.

    Parameters
    ----------
    engine : Engine
        The engine.
    layer : nn.Module
        Its layer.
    """

    def __init__(self, engine: Engine, layer: nn.Module) -> None:
        self.layer = layer
        self.shapes: dict[str, torch.Size] = {}
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        for name, tensor in engine.backend.parameters(layer).items():
            self.shapes[name] = tensor.shape
            self._places[name] = _place(layer, tensor)

    def bind(self, name: str, tensor: Tensor) -> None:
        """Use a tensor in place of a parameter or buffer of the layer."""
        store, key = self._places[name]
        store[key] = tensor

    def __call__(self, x: Any, training: bool) -> Any:
        """Apply the layer to the engine's tensor."""
        if self.layer.training is not training:
            self.layer.train(training)
        return self.layer(x)


def _place(layer: nn.Module, tensor: Tensor) -> tuple[dict[str, Any], str]:
    """Return the dictionary of a module in which a parameter or buffer stands, and its key."""
    for module in layer.modules():
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is tensor:
                    return store, key
    raise ValueError("the engine's layer does not own its parameter")
