"""Convolutions over kernel maps with gradients: one operator for torch, for all kernel sets.

``sscn::convolve`` and ``sscn::convolve_backward`` are torch custom operators, so ``torch.compile``
keeps them whole. Eager networks call the same kernels through ``tape``, which spares the costs of
the dispatcher and of autograd: detector networks have many small layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn import kernels
from backends.sscn.kernels import Connection, KernelMap, Kernels


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
    connection.check(x.shape[0], weight.shape[0])
    forward, backward, mirrored = connection
    return torch.ops.sscn.convolve(
        x, skip, weight, scale, shift, residual,
        forward.tensors, backward.tensors, forward.rows, mirrored, statistics, kernel_set,
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


def gradients(
    functions: Kernels,
    grad: Tensor,
    out: Tensor,
    grad_sums: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    connection: Connection,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    to_input: bool,
    to_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Make the gradients of a convolution that are wanted.

    Parameters
    ----------
    functions : Kernels
        The kernel set.
    grad, grad_sums : Tensor
        What reaches the output and, if anything does, its sums.
    out, x, skip, weight, connection, scale, shift
        As ``convolve`` took and gave them.
    to_input, to_weight : bool
        What is wanted.

    Returns
    -------
    to_x, to_skip, to_norm, to_weight : Tensor or None
        ``to_norm`` is (2, C_in) float64, the gradients of scale and shift.
    total : Tensor or None
        What reaches ``out`` in all, and so the residual: None if it is ``grad``.
    """
    forward, backward, mirrored = connection
    together = getattr(functions, "gradients", None)
    if together is not None:
        return together(
            grad, out, grad_sums, x, skip, weight, backward, mirrored, scale, shift, to_input,
            to_weight,
        )  # fmt: skip
    to_x = to_skip = to_norm = weights = total = None
    if grad_sums is not None:
        grad = total = functions.statistics_gradient(grad, out, grad_sums)
    if to_input:
        to_x, to_skip, to_norm = functions.input_gradient(
            grad, weight, backward, mirrored, x, skip, scale, shift
        )
    if to_weight:
        weights = functions.weight_gradient(x, skip, grad, forward, scale, shift)
    return to_x, to_skip, to_norm, weights, total


def _gradients_for_torch(
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
    """As ``gradients``, with (0,) for what was not asked: operators return no None."""
    taps = weight.shape[0]
    connection = Connection(
        KernelMap(tuple(forward_map), grad.shape[0], taps),
        KernelMap(tuple(backward_map), x.shape[0], taps),
        mirrored,
    )
    made = gradients(
        kernels.load(kernel_set), grad, grad if out is None else out, grad_sums, x, skip, weight,
        connection, scale, shift, to_input=to_input, to_weight=to_weight,
    )  # fmt: skip
    return tuple(grad.new_empty(0) if value is None else value for value in made)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, skip, weight, scale, shift, _, forward_map, backward_map, _, mirrored, statistics, name = (
        inputs
    )
    ctx.set_materialize_grads(False)
    ctx.maps = len(forward_map)
    ctx.mirrored, ctx.kernel_set = mirrored, name
    kept = output[0] if statistics else None
    ctx.save_for_backward(kept, x, skip, weight, scale, shift, *forward_map, *backward_map)


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


def _backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
    out, x, skip, weight, scale, shift, *maps = ctx.saved_tensors
    not_tensors = [None] * ctx.maps, [None] * (len(maps) - ctx.maps), *(None,) * 4
    if out is None:
        grad_sums = None
    if grad is None:
        if grad_sums is None:
            return *(None,) * 6, *not_tensors
        grad = torch.zeros_like(out)
    needs_x, needs_skip, needs_weight, needs_scale, needs_shift, needs_residual = (
        ctx.needs_input_grad[:6]
    )
    to_input = needs_x or needs_skip or needs_scale or needs_shift
    to_x, to_skip, to_norm, to_weight, total = torch.ops.sscn.convolve_backward(
        grad.contiguous(), out if grad_sums is not None else None, grad_sums,
        x, skip, weight, scale, shift, maps[: ctx.maps], maps[ctx.maps :], ctx.mirrored,
        to_input, needs_weight, ctx.kernel_set,
    )  # fmt: skip
    to_scale = to_shift = None
    if needs_scale or needs_shift:
        to_scale, to_shift = to_norm.to(scale.dtype).unbind(0)
    return (
        to_x if needs_x else None,
        to_skip if needs_skip else None,
        to_weight if needs_weight else None,
        to_scale if needs_scale else None,
        to_shift if needs_shift else None,
        (total if grad_sums is not None else grad) if needs_residual else None,
        *not_tensors,
    )


torch.library.register_autograd(
    "sscn::convolve",
    _backward,
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
