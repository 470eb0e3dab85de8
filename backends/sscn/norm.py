"""Batch normalisation as a scale and a shift per channel, from sums that kernels compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backends.contract import NormConfig
from backends.norm import batch_norm
from backends.sscn.deferred_layer import BatchNorm, Folding, Rows, ScaleShift, computed
from backends.sscn.kernel_set import KernelSet


def differentiable(
    norm: BatchNorm, sources: tuple[Rows, ...], kernels: KernelSet
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the norm of a batch, with an autograd node back to its sums."""
    sums = torch.cat([computed(rows.sums) for rows in sources], 1)
    folding = kernels.fold_norm(norm, sources)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Fold.apply
    return apply(sums, norm.weight, norm.bias, folding, norm.rows, kernels)


class _Fold(torch.autograd.Function):
    """From sums over rows to scale and shift, whose values have been computed before."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        weight: Tensor,
        bias: Tensor,
        folding: Folding,
        rows: int,
        kernels: KernelSet,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.moments, ctx.rows, ctx.kernels = folding.moments, rows, kernels
        return folding.scale.clone(), folding.shift.clone()

    @staticmethod
    def backward(ctx: Any, to_scale: Tensor, to_shift: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        to_norm = torch.stack([to_scale, to_shift]).double()
        of_sums_and_parameters = ctx.kernels.fold_gradient(to_norm, weight, ctx.moments, ctx.rows)
        return *of_sums_and_parameters, None, None, None


class _Folded(NamedTuple):
    """Folded running statistics, and the addresses and versions of their source tensors."""

    state: tuple[int, ...]
    norm: ScaleShift


class Norm(nn.Module):
    """Batch normalisation and leaky ReLU in the form leaky(scale * x + shift).

    In training, mean and variance come from the sums of x and of its squares over all rows. In
    evaluation, the running statistics are folded into scale and shift.
    """

    def __init__(self, config: NormConfig) -> None:
        super().__init__()
        self.norm = batch_norm(config)
        self.slope = config.slope
        self._folded: _Folded | None = None

    def from_batch(self, sources: tuple[Rows, ...]) -> BatchNorm:
        """Return the norm of a batch in training; it is folded when a layer applies it.

        Raises
        ------
        ValueError
            If there are fewer than two sites, which have no variance.
        """
        rows, _ = sources[0].shape
        if rows < 2:
            raise ValueError("batch normalisation in training needs at least 2 sites")
        weight, bias, mean, variance = self._parts()
        momentum = self.norm.momentum
        assert momentum is not None
        running = mean, variance
        return BatchNorm(rows, weight, bias, running, self.norm.eps, momentum, self.slope)

    def from_running(self) -> ScaleShift:
        """Return scale and shift of the running statistics; they are cached until these change."""
        weight, bias, mean, variance = self._parts()
        requires_grad = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
        if requires_grad or torch.compiler.is_compiling():
            return self._fold()
        state = (
            weight.data_ptr(), weight._version, bias.data_ptr(), bias._version,
            mean.data_ptr(), mean._version, variance.data_ptr(), variance._version,
        )  # fmt: skip
        folded = self._folded
        if folded is None or folded.state != state:
            folded = self._folded = _Folded(state, self._fold())
        return folded.norm

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm = self.norm
        parameters, buffers = norm._parameters, norm._buffers  # faster than attributes
        return (
            computed(parameters["weight"]),
            computed(parameters["bias"]),
            computed(buffers["running_mean"]),
            computed(buffers["running_var"]),
        )

    def _fold(self) -> ScaleShift:
        weight, bias, mean, variance = self._parts()
        scale = weight * (variance + self.norm.eps).rsqrt()
        return ScaleShift(scale, bias - mean * scale, self.slope)
