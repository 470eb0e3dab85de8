"""Base of the adapters of torchsparse and of engines with its convolution layer.

Nothing here imports an engine: an adapter passes the engine's class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backends.arithmetic import TorchArithmetic
from backends.contract import Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters


class NativeConvolution(nn.Module):
    """A convolution of the engine and the type of the precision policy; adapters compute it."""

    def __init__(self, native: nn.Module, cast: torch.dtype | None) -> None:
        super().__init__()
        self.native = native
        self.cast = cast


class TorchsparseInterface(TorchArithmetic, PointwiseByTorch):
    """The convolutions of the contract by torchsparse's layer; an adapter sets the attributes.

    Attributes
    ----------
    name : str
        The engine.
    layer_class : type
        ``torchsparse.nn.Conv3d``, or its equivalent.
    """

    name: str
    layer_class: Any

    def native_convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int
    ) -> nn.Module:
        """Return the engine's layer, which finds the level from the stride."""
        expected = 3 if kind is Kind.SUBMANIFOLD else 2
        if kind is Kind.ORDINARY or kernel_size != expected:
            raise Unsupported(f"{self.name} has no {kind} convolution with kernel {kernel_size}")
        layer_class = self.layer_class
        native: nn.Module = layer_class(
            in_channels,
            out_channels,
            kernel_size,
            stride=1 if kind is Kind.SUBMANIFOLD else 2,
            transposed=kind is Kind.INVERSE,
        )
        return native

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, NativeConvolution):
            return {"weight": layer.native.kernel}  # type: ignore[dict-item]
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)
