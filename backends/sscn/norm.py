"""Batch normalisation as a scale and a shift per channel, from sums that a kernel left behind."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backends.norm import batch_norm
from backends.sscn.kernels import Kernels
from backends.sscn.tape import BatchNorm, Folding, Rows, known


def differentiable(
    norm: BatchNorm, sources: tuple[Rows, ...], functions: Kernels
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch as functions of its sums, for autograd to see through."""
    sums = torch.cat([known(rows.sums) for rows in sources], 1)
    folding = norm.fold(sources, functions)
    return _Fold.apply(sums, norm.weight, norm.bias, folding, norm.rows, functions)


class _Fold(torch.autograd.Function):
    """From sums over rows to scale and shift, which have been computed."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        weight: Tensor,
        bias: Tensor,
        folding: Folding,
        rows: int,
        functions: Kernels,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.moments, ctx.rows, ctx.functions = folding.moments, rows, functions
        return folding.scale.clone(), folding.shift.clone()

    @staticmethod
    def backward(ctx: Any, to_scale: Tensor, to_shift: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        to_norm = torch.stack([to_scale, to_shift]).double()
        of_sums_and_parameters = ctx.functions.fold_gradient(to_norm, weight, ctx.moments, ctx.rows)
        return *of_sums_and_parameters, None, None, None


class _Folded(NamedTuple):
    """Folded running statistics, and the addresses and versions of what they were folded from."""

    state: tuple[int, ...]
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

    def from_batch(self, sources: tuple[Rows, ...]) -> BatchNorm:
        """Return the norm of a batch in training, whose sums are known once its rows are.

        Raises
        ------
        ValueError
            If there are fewer than two sites, which have no variance.
        """
        rows, _ = sources[0].shape
        if rows < 2:
            raise ValueError("batch normalisation in training needs at least 2 sites")
        weight, bias, mean, variance = self._parts()
        return BatchNorm(rows, weight, bias, (mean, variance), self.norm.eps)

    def from_running(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of the running statistics, folded once until they change."""
        weight, bias, mean, variance = self._parts()
        wanted = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
        if wanted or torch.compiler.is_compiling():
            return self._fold()
        state = (
            weight.data_ptr(), weight._version, bias.data_ptr(), bias._version,
            mean.data_ptr(), mean._version, variance.data_ptr(), variance._version,
        )  # fmt: skip
        folded = self._folded
        if folded is None or folded.state != state:
            folded = self._folded = _Folded(state, *self._fold())
        return folded.scale, folded.shift

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm = self.norm
        parameters, buffers = norm._parameters, norm._buffers  # quicker than attributes
        return (
            known(parameters["weight"]),
            known(parameters["bias"]),
            known(buffers["running_mean"]),
            known(buffers["running_var"]),
        )

    def _fold(self) -> tuple[Tensor, Tensor]:
        weight, bias, mean, variance = self._parts()
        scale = weight * (variance + self.norm.eps).rsqrt()
        return scale, bias - mean * scale
