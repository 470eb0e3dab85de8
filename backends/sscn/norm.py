"""Batch normalisation as a scale and a shift per channel, from sums that a kernel left behind."""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from backends.norm import batch_norm
from backends.uresnet import NORM_MOMENTUM


class _Fold(torch.autograd.Function):
    """From sums over rows to scale and shift; see ``NormReLU``."""

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, weight: Tensor, bias: Tensor, rows: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, square = (sums / rows).unbind(0)
        variance = (square - mean * mean).clamp_(min=0)
        inverse = (variance + eps).rsqrt_()
        scale = weight * inverse
        ctx.save_for_backward(mean, inverse, weight)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, variance)
        shift = torch.addcmul(bias, mean, scale, value=-1)
        return scale.to(weight.dtype), shift.to(weight.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, to_scale: Tensor, to_shift: Tensor, *_: Any) -> tuple[Any, ...]:
        mean, inverse, weight = ctx.saved_tensors
        to_weight = torch.addcmul(to_scale, to_shift, mean, value=-1).mul_(inverse)
        # The variance enters through inverse = (variance + eps)^(-1/2).
        to_variance = to_weight * weight * inverse.square().mul_(-0.5 / ctx.rows)
        to_mean = torch.addcmul(
            to_shift * weight * inverse * (-1 / ctx.rows), mean, to_variance, value=-2
        )
        to_sums = torch.stack([to_mean, to_variance])
        return to_sums, to_weight.to(weight.dtype), to_shift.to(weight.dtype), None, None


class FoldKernels(Protocol):
    """What the module ``norm`` of a kernel set offers, in one call or launch each."""

    def fold(
        self,
        sums: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rows: int,
        eps: float,
        momentum: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the statistics of a batch into scale and shift, and move the running ones in place.

        Parameters
        ----------
        sums : Tensor
            (2, C) float64, sums of the features and of their squares.
        weight, bias, running_mean, running_var : Tensor
            (C,) float32.
        rows : int
            Number of sites, at least 2.
        eps, momentum : float
            As torch's batch normalisation has them.

        Returns
        -------
        scale, shift : Tensor
            (C,) float32.
        moments : Tensor
            (2, C) float64: mean and inverse standard deviation, for the gradient.
        """
        ...

    def fold_gradient(
        self, to_scale: Tensor, to_shift: Tensor, weight: Tensor, moments: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the sums and of the weight; that of the bias is ``to_shift``."""
        ...


class Folding(NamedTuple):
    """What a kernel set made of the sums of a batch, unknown to autograd."""

    scale: Tensor
    shift: Tensor
    moments: Tensor
    rows: int
    kernel_set: str

    def gradient(self, weight: Tensor, to_scale: Tensor, to_shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the sums and of the weight; that of the bias is ``to_shift``."""
        return _folding(self.kernel_set).fold_gradient(
            to_scale, to_shift, weight, self.moments, self.rows
        )


class FoldedBatch(NamedTuple):
    """The folded norm of a batch, and what it was folded from.

    A convolution that applies it returns the gradients of ``sums``, ``weight`` and ``bias`` by
    itself: one node of the graph a layer instead of two.
    """

    folding: Folding
    sums: Tensor
    weight: Tensor
    bias: Tensor

    def differentiable(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift as autograd knows them."""
        return _FoldOnce.apply(self.sums, self.weight, self.bias, self.folding)


class _FoldOnce(torch.autograd.Function):
    """As ``_Fold``, of what a kernel set has folded already."""

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, weight: Tensor, bias: Tensor, folding: Folding
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.folding = folding
        return folding.scale.clone(), folding.shift.clone()

    @staticmethod
    def backward(ctx: Any, to_scale: Tensor, to_shift: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        to_sums, to_weight = ctx.folding.gradient(weight, to_scale, to_shift)
        return to_sums, to_weight, to_shift, None


@functools.cache
def _folding(kernel_set: str) -> FoldKernels:
    return cast(FoldKernels, importlib.import_module(f"backends.sscn.{kernel_set}.norm"))


class _Folded(NamedTuple):
    """Folded running statistics, and the addresses and versions of what they were folded from."""

    state: list[int]
    scale: Tensor
    shift: Tensor


class NormReLU(nn.Module):
    """Batch normalisation and ReLU, given as relu(scale * x + shift).

    Training takes mean and variance from the sums of x and of its squares over all rows;
    evaluation folds the running statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = batch_norm(channels)
        self._folded: _Folded | None = None

    def from_sums(self, sums: Tensor, rows: int, kernel_set: str) -> tuple[Tensor, Tensor]:
        """Return scale and shift of a batch in training, and update the running statistics.

        Parameters
        ----------
        sums : Tensor
            (2, C) float64, sums of the features and of their squares.
        rows : int
            Number of sites.
        kernel_set : str
            Name of the kernel set that made the sums.

        Raises
        ------
        ValueError
            If there are fewer than two sites, which have no variance.
        """
        folded = self.fold(sums, rows, kernel_set)
        return folded.differentiable() if isinstance(folded, FoldedBatch) else folded

    def fold(self, sums: Tensor, rows: int, kernel_set: str) -> FoldedBatch | tuple[Tensor, Tensor]:
        """As ``from_sums``, but leave the gradient to the convolution where that can do it."""
        if rows < 2:
            raise ValueError("batch normalisation in training needs at least 2 sites")
        norm = self.norm
        weight, bias, running_mean, running_var = self._parts()
        if kernel_set != "reference" and weight.dtype == torch.float32:
            with torch.no_grad():
                scale, shift, moments = _folding(kernel_set).fold(
                    sums, weight, bias, running_mean, running_var, rows, norm.eps, NORM_MOMENTUM
                )
            for changed in (running_mean, running_var):  # behind torch's back
                torch.autograd.graph.increment_version(changed)
            return FoldedBatch(Folding(scale, shift, moments, rows, kernel_set), sums, weight, bias)
        scale, shift, mean, variance = _Fold.apply(sums, weight, bias, rows, norm.eps)
        with torch.no_grad():
            running_mean.lerp_(mean.to(scale.dtype), NORM_MOMENTUM)
            running_var.lerp_((variance * (rows / (rows - 1))).to(scale.dtype), NORM_MOMENTUM)
        return scale, shift

    def from_running(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of the running statistics, folded once until they change."""
        parts = self._parts()
        if torch.is_grad_enabled() and (parts[0].requires_grad or parts[1].requires_grad):
            return self._fold()
        state = [fact for part in parts for fact in (part.data_ptr(), part._version)]
        folded = self._folded
        if folded is None or folded.state != state:
            folded = self._folded = _Folded(state, *self._fold())
        return folded.scale, folded.shift

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parameters, buffers = self.norm._parameters, self.norm._buffers
        weight, bias = parameters["weight"], parameters["bias"]
        mean, variance = buffers["running_mean"], buffers["running_var"]
        assert weight is not None
        assert bias is not None
        assert mean is not None
        assert variance is not None
        return weight, bias, mean, variance

    def _fold(self) -> tuple[Tensor, Tensor]:
        weight, bias, mean, variance = self._parts()
        scale = weight * (variance + self.norm.eps).rsqrt()
        return scale, bias - mean * scale
