"""Single convolutions and their gradients by the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.sscn.cpu.arrays import pairs
from backends.sscn.cpu.instructions import (
    CONVOLVE,
    INPUT_GRADIENT,
    STATISTICS_GRADIENT,
    WEIGHT_GRADIENT,
    InstructionStream,
    Products,
)
from backends.sscn.kernel_map import GatherMap, KernelMap
from backends.sscn.kernel_set import ConvolutionGradients


def convolve(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    gather_map: GatherMap,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
    slope: float,
    products: Products,
) -> tuple[Tensor, Tensor]:
    """Convolve, add the residual, and sum the result; see ``KernelSet``."""
    stream = InstructionStream()
    source = _source(stream, x, skip, weight, gather_map.taps, scale, shift, slope)
    out_channels = weight.shape[2]
    out = x.new_empty((gather_map.rows, out_channels))
    sums = torch.empty((2, out_channels) if statistics else 0, dtype=torch.float64)
    if residual is not None and residual.shape != out.shape:
        raise ValueError(f"the residual must have shape {tuple(out.shape)}")
    stream.write(
        CONVOLVE, *source, stream.address(weight), out_channels, *pairs(gather_map), products,
        0 if residual is None else stream.address(residual), out.data_ptr(),
        sums.data_ptr() if statistics else 0, False,
    )  # fmt: skip
    stream.run()
    return out, sums


def gradients(
    grad: Tensor,
    out: Tensor | None,
    grad_sums: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    kernel_map: KernelMap,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
    to_input: bool,
    to_weight: bool,
    products: Products,
) -> ConvolutionGradients:
    """Compute the requested gradients of a convolution in one call; see ``KernelSet``.

    All of them use the backward map.
    """
    stream = InstructionStream()
    address = stream.address
    _, backward, mirrored = kernel_map
    source = _source(stream, x, skip, weight, backward.taps, scale, shift, slope)
    if len(x) != backward.rows:
        raise ValueError(f"the map leads back to {backward.rows} rows, not {len(x)}")
    map_words = *pairs(backward), mirrored
    to_x = to_skip = to_norm = weights = total = None
    if grad_sums is not None:
        assert out is not None
        total = torch.empty(out.shape)
        stream.write(
            STATISTICS_GRADIENT, address(grad), address(out),
            stream.keep(grad_sums.to(torch.float64).contiguous()), *out.shape,
            total.data_ptr(),
        )  # fmt: skip
        grad = total
    gradient = address(grad), *grad.shape
    if to_input:
        to_x = torch.empty(x.shape)
        to_skip = torch.empty(0 if skip is None else skip.shape)
        to_norm = torch.empty(0 if scale is None else (2, weight.shape[1]), dtype=torch.float64)
        stream.write(
            INPUT_GRADIENT, *gradient, address(weight), *map_words, products, *source, 0, 0,
            to_x.data_ptr(), to_skip.data_ptr(), to_norm.data_ptr(),
        )  # fmt: skip
    if to_weight:
        weights = torch.empty(weight.shape)
        stream.write(WEIGHT_GRADIENT, *source, *gradient, *map_words, weights.data_ptr())
    stream.run()
    return ConvolutionGradients(to_x, to_skip, to_norm, weights, total)


def _source(
    stream: InstructionStream,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    taps: int,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float,
) -> tuple[float, ...]:
    """Check an input against the weights and the taps of a map; return its words."""
    address = stream.address
    weight_taps, channels, _ = weight.shape
    rows, x_channels = x.shape
    skip_address = skip_channels = scale_address = shift_address = 0
    if weight_taps != taps:
        raise ValueError(f"the weights have {weight_taps} taps, the map {taps}")
    if skip is not None:
        skip_address, skip_channels = address(skip), skip.shape[1]
        if skip.shape[0] != rows:
            raise ValueError(f"both sources must have {rows} rows, the second has {skip.shape[0]}")
    if x_channels + skip_channels != channels:
        raise ValueError(f"the weights take {channels} channels, not {x_channels + skip_channels}")
    if scale is not None and shift is not None:
        scale_address, shift_address = address(scale), address(shift)
        if scale.numel() != channels or shift.numel() != channels:
            raise ValueError(f"scale and shift must have {channels} channels")
    return (
        address(x), skip_address, rows, x_channels, skip_channels, scale_address, shift_address,
        slope,
    )  # fmt: skip
