"""SPINE's contract of a sparse backend, in the engines of this project.

SPINE calls these functions; ``spine.model.sparse.backend`` documents them.
"""

from __future__ import annotations

from typing import Any

import spine.version
from torch import Tensor

from backends.spine import engine, layers, pooling
from backends.spine.coordinates import (
    REDUCTIONS,
    CoordinateManager,
    CoordinateMap,
    unique,
)
from backends.spine.tensor import SparseTensor, concatenated, values

KNOWN = "1.4."
"""Versions of SPINE with the contract that is implemented here."""

if not spine.version.__version__.startswith(KNOWN):
    raise ImportError(
        f"SPINE {spine.version.__version__} is not known to this backend: install spine==1.4.3"
    )

engine.chosen()

_MODULES: dict[str, type] = {
    each.__name__: each
    for each in (
        layers.Network,
        layers.Convolution,
        layers.ConvolutionTranspose,
        layers.ChannelwiseConvolution,
        layers.Linear,
        layers.BatchNorm,
        pooling.InstanceNorm,
        layers.Dropout,
        layers.ReLU,
        layers.PReLU,
        layers.SELU,
        layers.CELU,
        layers.LeakyReLU,
        layers.ELU,
        layers.Tanh,
        layers.Sigmoid,
        layers.Softplus,
        pooling.MaxPooling,
        pooling.AvgPooling,
        pooling.SumPooling,
        pooling.PoolingTranspose,
        pooling.GlobalPooling,
        pooling.GlobalAvgPooling,
        pooling.GlobalSumPooling,
        pooling.GlobalMaxPooling,
        pooling.Pruning,
        pooling.Broadcast,
        pooling.BroadcastMultiplication,
    )
}


def module(operation: str) -> type:
    """Return the class of an operation.

    Raises
    ------
    ValueError
        If there is no such operation.
    """
    if operation not in _MODULES:
        raise ValueError(f"The sscn_bench backend does not implement `{operation}`.")
    return _MODULES[operation]


def create_tensor(
    features: Tensor,
    coordinates: Tensor | None = None,
    tensor_stride: Any = 1,
    coordinate_map_key: CoordinateMap | None = None,
    coordinate_manager: CoordinateManager | None = None,
    duplicate_reduction: str | None = None,
) -> SparseTensor:
    """Return a sparse tensor on new coordinates, or on those of a key."""
    features = values(features)
    if coordinates is None:
        if coordinate_map_key is None:
            raise ValueError("a sparse tensor needs coordinates or a coordinate-map key")
        if len(features) != coordinate_map_key.count():
            raise ValueError(
                f"there are {len(features)} rows of features for {coordinate_map_key.count()} sites"
            )
        return SparseTensor(coordinate_map_key, features)
    if duplicate_reduction is None:
        duplicate_reduction = "first"
    if duplicate_reduction not in REDUCTIONS:
        raise ValueError(
            f"Unknown duplicate reduction `{duplicate_reduction}`. "
            "Choose from 'mean', 'sum' or 'first'."
        )
    coordinates = values(coordinates)
    stride = (tensor_stride,) if isinstance(tensor_stride, int) else tuple(tensor_stride)
    dimension = coordinates.shape[1] - 1
    if len(stride) == 1:
        stride = stride * dimension
    first, inverse = unique(coordinates)
    if len(first) < len(coordinates):
        features = REDUCTIONS[duplicate_reduction](features, first, inverse)
        coordinates = coordinates[first]
    manager = CoordinateManager() if coordinate_manager is None else coordinate_manager
    at = manager.find(coordinates, tuple(int(each) for each in stride))
    if at.unique is None:
        at.unique = first, inverse
    return SparseTensor(at, features)


def concatenate(*tensors: SparseTensor) -> SparseTensor:
    """Concatenate the features of tensors on one coordinate map."""
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tuple(tensors[0])
    return concatenated(tensors)


def coordinates(tensor: SparseTensor) -> Tensor:
    """Return the coordinates, computed at their first use."""
    return tensor.at.deferred


def features(tensor: SparseTensor) -> Tensor:
    """Return the features, computed at their first use."""
    return tensor.F


def tensor_stride(tensor: SparseTensor) -> tuple[int, ...]:
    """Return the tensor stride per axis."""
    return tensor.at.stride


def coordinate_map_key(tensor: SparseTensor) -> CoordinateMap:
    """Return the coordinate map."""
    return tensor.at


def coordinate_manager(tensor: SparseTensor) -> CoordinateManager:
    """Return the manager of the coordinate map."""
    return tensor.at.manager


def unique_index(tensor: SparseTensor) -> Tensor | None:
    """Return the input row of each site."""
    return tensor.at.unique[0] if tensor.at.unique else None


def inverse_mapping(tensor: SparseTensor) -> Tensor | None:
    """Return the site of each input row."""
    return tensor.at.unique[1] if tensor.at.unique else None


def features_at_coordinates(tensor: SparseTensor, queries: Tensor) -> Tensor:
    """Interpolate the features at coordinates."""
    return tensor.features_at_coordinates(values(queries))
