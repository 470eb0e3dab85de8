"""Convolutions over kernel maps with gradients: one operator and its autograd, for all kernel sets.

``sscn::convolve`` and ``sscn::convolve_backward`` are torch custom operators, so ``torch.compile``
keeps them whole. Eager code calls the same kernels through a plain ``autograd.Function``, which
spares the dispatcher's cost: detector networks have many small layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn import kernels
from backends.sscn.kernels import Connection, KernelMap
from backends.sscn.norm import FoldedBatch, Folding


def convolve(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    connection: Connection,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    statistics: bool = False,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    """Convolve relu(scale * [x, skip] + shift) over a kernel map and add a residual.

    Parameters
    ----------
    x, skip : Tensor
        (N_in, C_x) and (N_in, C_skip) or None; the channels of both are the input.
    weight : Tensor
        (K, C_x + C_skip, C_out).
    connection : Connection
        The kernel maps, made by the same kernel set.
    scale, shift : Tensor or None
        (C_in,), or None for an input without norm and ReLU.
    residual : Tensor or None
        (N_out, C_out).
    statistics : bool
        Whether to sum up the result for the norm that follows.
    kernel_set : str
        Name of the kernel set.

    Returns
    -------
    out : Tensor
        (N_out, C_out).
    sums : Tensor
        (2, C_out) float64, the sums of ``out`` and of its squares over the rows, or (0,).

    Raises
    ------
    ValueError
        If the rows of ``x`` are not those that the map was built for.
    """
    forward, backward, mirrored = connection
    rows = forward.rows
    if x.shape[0] != backward.rows:
        raise ValueError(f"the kernel map takes {backward.rows} rows, the input has {x.shape[0]}")
    if torch.compiler.is_compiling():
        return torch.ops.sscn.convolve(
            x, skip, weight, scale, shift, residual,
            forward.tensors, backward.tensors, rows, mirrored, statistics, kernel_set,
        )  # fmt: skip
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, skip, scale, shift, residual)
    ):
        return _Convolve.apply(
            x, skip, weight, scale, shift, residual,
            forward.tensors, backward.tensors, rows, mirrored, statistics, kernel_set,
        )  # fmt: skip
    functions = kernels.load(kernel_set)
    return functions.convolve(x, skip, weight, forward, scale, shift, residual, statistics)


def convolve_normed(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    connection: Connection,
    folded: FoldedBatch,
    residual: Tensor | None = None,
    *,
    statistics: bool = False,
    kernel_set: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``convolve``, with the folded norm of a batch in place of ``scale`` and ``shift``.

    Returns
    -------
    out, sums : Tensor
        As ``convolve``.
    carried : Tensor
        x again. Whoever adds it to something, as residual blocks do, gives the gradient back
        through this layer, which adds it where it writes its own.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        norm = folded.differentiable()
        out, sums = convolve(
            x, skip, weight, connection, *norm, residual,
            statistics=statistics, kernel_set=kernel_set,
        )  # fmt: skip
        return out, sums, x
    if x.shape[0] != connection.backward.rows:
        raise ValueError(
            f"the kernel map takes {connection.backward.rows} rows, the input has {x.shape[0]}"
        )
    return _NormedConvolve.apply(
        x, skip, weight, folded.sums, folded.weight, folded.bias, residual, folded.folding,
        connection, statistics, kernel_set,
    )  # fmt: skip


def _forward(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    forward_map: Sequence[Tensor],
    backward_map: Sequence[Tensor],
    rows: int,
    mirrored: bool,
    statistics: bool,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    kernel_map = KernelMap(tuple(forward_map), rows, weight.shape[0])
    functions = kernels.load(kernel_set)
    return functions.convolve(x, skip, weight, kernel_map, scale, shift, residual, statistics)


def _gradients(
    grad: Tensor,
    out: Tensor | None,
    grad_sums: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    forward_map: Sequence[Tensor],
    backward_map: Sequence[Tensor],
    mirrored: bool,
    to_input: bool,
    to_weight: bool,
    kernel_set: str,
    carried: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, skip, the norm (see ``input_gradient``), weight and residual.

    ``carried`` is a gradient that reaches x elsewhere and is added.
    """
    functions = kernels.load(kernel_set)
    taps = weight.shape[0]
    together = getattr(functions, "gradients", None)
    if together is not None:
        kernel_map = KernelMap(tuple(backward_map), x.shape[0], taps)
        return together(
            grad, out, grad_sums, x, skip, weight, kernel_map, mirrored, scale, shift, to_input,
            to_weight, carried,
        )  # fmt: skip
    to_x = to_skip = norm = weights = total = None
    if grad_sums is not None:
        assert out is not None
        grad = total = functions.statistics_gradient(grad, out, grad_sums)
    if to_input:
        kernel_map = KernelMap(tuple(backward_map), x.shape[0], taps)
        to_x, to_skip, norm = functions.input_gradient(
            grad, weight, kernel_map, mirrored, x, skip, scale, shift
        )
        if carried is not None:
            to_x = to_x + carried
    if to_weight:
        kernel_map = KernelMap(tuple(forward_map), grad.shape[0], taps)
        weights = functions.weight_gradient(x, skip, grad, kernel_map, scale, shift)
    return to_x, to_skip, norm, weights, total


def _gradients_for_torch(*arguments: Any) -> tuple[Tensor, ...]:
    """As ``_gradients``, with (0,) for what was not asked: operators return no None."""
    return tuple(
        arguments[0].new_empty(0) if value is None else value for value in _gradients(*arguments)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, skip, weight, scale, shift, _, forward_map, backward_map, _, mirrored, statistics, name = (
        inputs
    )
    ctx.set_materialize_grads(False)
    ctx.maps = len(forward_map)
    ctx.mirrored, ctx.kernel_set = mirrored, name
    kept = output[0] if statistics else None
    ctx.save_for_backward(kept, x, skip, weight, scale, shift, *forward_map, *backward_map)


def _backward(
    ctx: Any, gradients: Any, grad: Tensor | None, grad_sums: Tensor | None
) -> tuple[Any, ...]:
    out, x, skip, weight, scale, shift, *maps = ctx.saved_tensors
    if out is None:
        grad_sums = None
    if grad is None:
        if grad_sums is None:
            return (None,) * 12
        grad = torch.zeros_like(out)
    needs_x, needs_skip, needs_weight, needs_scale, needs_shift, needs_residual = (
        ctx.needs_input_grad[:6]
    )
    to_input = needs_x or needs_skip or needs_scale or needs_shift
    to_x, to_skip, norm, weights, total = gradients(
        grad.contiguous(), out if grad_sums is not None else None, grad_sums,
        x, skip, weight, scale, shift, maps[: ctx.maps], maps[ctx.maps :], ctx.mirrored,
        to_input, needs_weight, ctx.kernel_set,
    )  # fmt: skip
    to_scale = to_shift = None
    if needs_scale or needs_shift:
        to_scale, to_shift = norm.to(scale.dtype).unbind(0)
    return (
        to_x if needs_x else None,
        to_skip if needs_skip else None,
        weights if needs_weight else None,
        to_scale if needs_scale else None,
        to_shift if needs_shift else None,
        (total if grad_sums is not None else grad) if needs_residual else None,
        *(None,) * 6,
    )


class _Convolve(torch.autograd.Function):
    """The eager way to the kernels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*arguments)
        _save(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _backward(ctx, _gradients, *grads)


class _NormedConvolve(torch.autograd.Function):
    """As ``_Convolve``, through the norm to the sums that it was folded from."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        sums: Tensor,
        gain: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        folding: Folding,
        connection: Connection,
        statistics: bool,
        kernel_set: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, next_sums = kernels.load(kernel_set).convolve(
            x, skip, weight, connection.forward, folding.scale, folding.shift, residual, statistics
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(out if statistics else None, x, skip, weight, gain)
        ctx.folding, ctx.connection, ctx.kernel_set = folding, connection, kernel_set
        return out, next_sums, x.view_as(x)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_sums: Tensor | None, carried: Tensor | None
    ) -> tuple[Any, ...]:
        out, x, skip, weight, gain = ctx.saved_tensors
        if out is None:
            grad_sums = None
        if grad is None:
            if grad_sums is None:
                return carried, *(None,) * 10
            grad = torch.zeros_like(out)
        x_too, skip_too, weight_too, sums_too, gain_too, bias_too, residual_too = (
            ctx.needs_input_grad[:7]
        )
        normed = sums_too or gain_too or bias_too
        forward, backward, mirrored = ctx.connection
        folding = ctx.folding
        to_x, to_skip, norm, weights, total = _gradients(
            grad.contiguous(), out, grad_sums, x, skip, weight, folding.scale, folding.shift,
            forward.tensors, backward.tensors, mirrored, x_too or skip_too or normed, weight_too,
            ctx.kernel_set, carried,
        )  # fmt: skip
        to_sums = to_gain = to_bias = None
        if norm is not None:
            to_scale, to_bias = norm.to(gain.dtype).unbind(0)
            to_sums, to_gain = folding.gradient(gain, to_scale, to_bias)
        if residual_too and total is None:
            total = grad
        return (
            to_x if x_too else None,
            to_skip if skip_too else None,
            weights if weight_too else None,
            to_sums if sums_too else None,
            to_gain if gain_too else None,
            to_bias if bias_too else None,
            total if residual_too else None,
            *(None,) * 4,
        )


torch.library.define(
    "sscn::convolve",
    "(Tensor x, Tensor? skip, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
    "Tensor[] forward_map, Tensor[] backward_map, SymInt rows, bool mirrored, bool statistics, "
    "str kernel_set) -> (Tensor, Tensor)",
)
torch.library.define(
    "sscn::convolve_backward",
    "(Tensor grad, Tensor? out, Tensor? grad_sums, Tensor x, Tensor? skip, Tensor weight, "
    "Tensor? scale, Tensor? shift, Tensor[] forward_map, Tensor[] backward_map, bool mirrored, "
    "bool to_input, bool to_weight, str kernel_set) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("sscn::convolve", ("cpu", "cuda"), _forward)
torch.library.impl("sscn::convolve_backward", ("cpu", "cuda"), _gradients_for_torch)


def _backward_for_torch(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    *to_tensors, _, _, rows, mirrored, statistics, kernel_set = _backward(
        ctx, torch.ops.sscn.convolve_backward, *grads
    )
    no_maps = [None] * ctx.maps, [None] * (len(ctx.saved_tensors) - 6 - ctx.maps)
    return *to_tensors, *no_maps, rows, mirrored, statistics, kernel_set


torch.library.register_autograd(
    "sscn::convolve",
    _backward_for_torch,
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)


@torch.library.register_fake("sscn::convolve")
def _shapes(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    forward_map: Sequence[Tensor],
    backward_map: Sequence[Tensor],
    rows: int,
    mirrored: bool,
    statistics: bool,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    channels = weight.shape[2]
    sums = (2, channels) if statistics else (0,)
    return x.new_empty((rows, channels)), x.new_empty(sums, dtype=torch.float64)


@torch.library.register_fake("sscn::convolve_backward")
def _gradient_shapes(
    grad: Tensor,
    out: Tensor | None,
    grad_sums: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    forward_map: Sequence[Tensor],
    backward_map: Sequence[Tensor],
    mirrored: bool,
    to_input: bool,
    to_weight: bool,
    kernel_set: str,
) -> tuple[Tensor, ...]:
    normed = to_input and scale is not None
    return (
        torch.empty_like(x) if to_input else x.new_empty(0),
        torch.empty_like(skip) if to_input and skip is not None else x.new_empty(0),
        x.new_empty((2, weight.shape[1]) if normed else (0,), dtype=torch.float64),
        torch.empty_like(weight) if to_weight else x.new_empty(0),
        torch.empty_like(grad) if grad_sums is not None else x.new_empty(0),
    )
