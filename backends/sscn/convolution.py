"""Convolutions over kernel maps as torch operators, for networks under ``torch.compile``.

``sscn::convolve`` and ``sscn::convolve_backward`` are custom operators, which the compiler calls
without tracing into them. Networks that are not compiled run the same kernels through ``deferred``,
which saves the costs of torch's dispatcher and of one autograd node per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn import selection
from backends.sscn.kernel_map import GatherMap, KernelMap


def convolve(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    kernel_map: KernelMap,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    statistics: bool = False,
    slope: float = 0.0,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    """Convolve leaky(scale * [x, skip] + shift) over a kernel map and add a residual.

    Parameters
    ----------
    x, skip : Tensor
        (N_in, C_x) and (N_in, C_skip) or None; the channels of both are the input.
    weight : Tensor
        (K, C_x + C_skip, C_out).
    kernel_map : KernelMap
        The kernel maps, made by the same kernel set.
    scale, shift : Tensor or None
        (C_in,), or None for an input without norm and activation.
    residual : Tensor or None
        (N_out, C_out).
    statistics : bool
        Whether to compute the sums of the result for the norm that follows.
    slope : float
        Factor of negative values after the norm.
    kernel_set : str
        Name of the kernel set, as ``selection.choose`` returns it.

    Returns
    -------
    out : Tensor
        (N_out, C_out).
    sums : Tensor
        (2, C_out) float64, the sums of ``out`` and of its squares over the rows, or (0,).

    Raises
    ------
    ValueError
        If ``x`` does not have as many rows as the map has input rows.
    """
    kernel_map.check(x.shape[0], weight.shape[0])
    forward, backward, mirrored = kernel_map
    out, sums = torch.ops.sscn.convolve(
        x, skip, weight, scale, shift, residual,
        forward.tensors, backward.tensors, forward.rows, mirrored, statistics, slope,
        kernel_set,
    )  # fmt: skip
    return out, sums


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
    slope: float,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    gather_map = GatherMap(tuple(forward_map), rows, weight.shape[0])
    kernels = selection.load(kernel_set)
    return kernels.convolve(x, skip, weight, gather_map, scale, shift, residual, statistics, slope)


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
    slope: float,
    kernel_set: str,
) -> tuple[Tensor, ...]:
    """Compute gradients; those not requested have shape (0,): an operator cannot return None."""
    taps = weight.shape[0]
    kernel_map = KernelMap(
        GatherMap(tuple(forward_map), grad.shape[0], taps),
        GatherMap(tuple(backward_map), x.shape[0], taps),
        mirrored,
    )
    found = selection.load(kernel_set).gradients(
        grad, out, grad_sums, x, skip, weight, kernel_map, scale, shift, slope,
        to_input=to_input, to_weight=to_weight,
    )  # fmt: skip
    return tuple(grad.new_empty(0) if value is None else value for value in found)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, skip, weight, scale, shift, _, forward_map, backward_map, _, *constants = inputs
    mirrored, statistics, slope, name = constants
    ctx.set_materialize_grads(False)
    ctx.maps = len(forward_map)
    ctx.mirrored, ctx.slope, ctx.kernel_set = mirrored, slope, name
    out = output[0] if statistics else None
    ctx.save_for_backward(out, x, skip, weight, scale, shift, *forward_map, *backward_map)


torch.library.define(
    "sscn::convolve",
    "(Tensor x, Tensor? skip, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
    "Tensor[] forward_map, Tensor[] backward_map, SymInt rows, bool mirrored, bool statistics, "
    "float slope, str kernel_set) -> (Tensor, Tensor)",
)
torch.library.define(
    "sscn::convolve_backward",
    "(Tensor grad, Tensor? out, Tensor? grad_sums, Tensor x, Tensor? skip, Tensor weight, "
    "Tensor? scale, Tensor? shift, Tensor[] forward_map, Tensor[] backward_map, bool mirrored, "
    "bool to_input, bool to_weight, float slope, str kernel_set) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("sscn::convolve", ("cpu", "cuda"), _forward)
torch.library.impl("sscn::convolve_backward", ("cpu", "cuda"), _gradients)


def _backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
    out, x, skip, weight, scale, shift, *maps = ctx.saved_tensors
    not_tensors = [None] * ctx.maps, [None] * (len(maps) - ctx.maps), *(None,) * 5
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
        to_input, needs_weight, ctx.slope, ctx.kernel_set,
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
    slope: float,
    kernel_set: str,
) -> tuple[Tensor, Tensor]:
    channels = weight.shape[2]
    sums = (2, channels) if statistics else (0,)
    return x.new_empty((rows, channels)), x.new_empty(sums, dtype=torch.float64)


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
    slope: float,
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


torch.library.register_fake("sscn::convolve", _shapes)
torch.library.register_fake("sscn::convolve_backward", _gradient_shapes)
