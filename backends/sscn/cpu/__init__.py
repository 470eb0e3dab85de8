"""The C++ kernels: float32 on the CPU, on torch's threads; see ``kernels.Kernels``.

Arrays are checked here and passed on by address. A kernel map keeps, for each block of output
rows and each tap, the pairs (input row, output row within the block): absent neighbours cost
nothing. ``SSCN_INSTRUCTION_SET`` (avx512, avx2, portable) overrides the choice of instructions.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from backends.contract import InvalidBatch
from backends.sscn import reference
from backends.sscn.cpu import _kernels
from backends.sscn.cpu._kernels import instruction_set, instruction_sets, peak, use
from backends.sscn.cpu.arrays import checked, empty_map, pairs
from backends.sscn.cpu.norm import fold, fold_gradient
from backends.sscn.cpu.program import Backward, Forward
from backends.sscn.kernels import Connection, KernelMap, axis_bits

__all__ = [
    "Backward",
    "Forward",
    "convolve",
    "fold",
    "fold_gradient",
    "gradients",
    "instruction_set",
    "instruction_sets",
    "ordinary_map",
    "peak",
    "sort_sites",
    "strided_map",
    "submanifold_map",
    "use",
]

if "SSCN_INSTRUCTION_SET" in os.environ:
    use(os.environ["SSCN_INSTRUCTION_SET"])

_MOST_ROWS = 2**31 - 1


def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys."""
    rows, dim = len(sites), sites.shape[1] - 1
    bits = axis_bits(spatial_size)
    if bits > (21 if dim == 3 else 31) or rows > _MOST_ROWS:
        raise InvalidBatch(f"{rows} sites in {spatial_size} voxels a side are too many to number")
    sites = sites.to(torch.int32).contiguous()
    keys, order = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
    bad = _kernels.sort_sites(
        sites.data_ptr(), rows, dim, bits, spatial_size, keys.data_ptr(), order.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if bad >= rows:
        site = sites[bad - rows].tolist()
        raise InvalidBatch(f"the site {site} is given twice; sum or drop duplicates first")
    if bad >= 0:
        raise InvalidBatch(
            f"the site {sites[bad].tolist()} lies outside a volume of {spatial_size} voxels a side"
        )
    return keys, order


def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> Connection:
    """Connect the sites of a level with each other."""
    same = _connect(keys, keys, dim, kernel_size, spatial_size)
    return Connection(same, same, True)


def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, Connection]:
    """Connect sites with their parents for kernel 2 and stride 2."""
    rows, taps = len(keys), 2**dim
    coarse, first = torch.empty_like(keys), keys.new_empty(rows, dtype=torch.int32)
    parents = _kernels.coarsen(keys.data_ptr(), rows, dim, coarse.data_ptr(), first.data_ptr())
    maps = []
    for number, connect in ((parents, _kernels.connect_down), (rows, _kernels.connect_up)):
        kernel_map = empty_map(number, taps, keys)
        rows_in, rows_out, spans, *_, block = pairs(kernel_map)
        connect(
            keys.data_ptr(), rows, first.data_ptr(), parents, dim, block, rows_in, rows_out, spans,
            torch.get_num_threads(),
        )  # fmt: skip
        maps.append(kernel_map)
    return coarse[:parents], Connection(maps[0], maps[1], False)


def ordinary_map(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> tuple[Tensor, Connection]:
    """Connect sites with every site that an odd, centred kernel reaches; its keys first."""
    reached = reference.dilated(keys, dim, kernel_size, spatial_size)
    forward = _connect(keys, reached, dim, kernel_size, spatial_size)
    backward = _connect(reached, keys, dim, kernel_size, spatial_size)
    return reached, Connection(forward, backward, True)


def convolve(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    kernel_map: KernelMap,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve, add the residual, and sum up the result."""
    rows, out_channels = kernel_map.rows, weight.shape[2]
    if weight.shape[0] != kernel_map.taps:
        raise ValueError(f"the weights have {weight.shape[0]} taps, the map {kernel_map.taps}")
    source, kept = _source(x, skip, weight.shape[1], scale, shift)
    weight = checked(weight)
    out = x.new_empty((rows, out_channels))
    sums = torch.empty((2, out_channels) if statistics else 0, dtype=torch.float64)
    if residual is not None:
        residual = checked(residual)
        if residual.shape != out.shape:
            raise ValueError(f"the residual must have shape {tuple(out.shape)}")
    _kernels.convolve(
        *source, weight.data_ptr(), out_channels, *pairs(kernel_map),
        0 if residual is None else residual.data_ptr(), out.data_ptr(),
        sums.data_ptr() if statistics else 0, torch.get_num_threads(),
    )  # fmt: skip
    del kept
    return out, sums


def gradients(
    grad: Tensor,
    out: Tensor | None,
    grad_sums: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    kernel_map: KernelMap,
    mirrored: bool,
    scale: Tensor | None,
    shift: Tensor | None,
    to_input: bool = True,
    to_weight: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Make all gradients of a convolution, over the backward map alone.

    Returns
    -------
    to_x, to_skip, sums : Tensor or None
        As ``input_gradient`` of other sets, None unless ``to_input``.
    weights : Tensor or None
        (K, C_in, C_out), None unless ``to_weight``.
    total : Tensor or None
        As ``statistics_gradient`` of other sets, None without ``grad_sums``.
    """
    source, kept = _source(x, skip, weight.shape[1], scale, shift)
    if weight.shape[0] != kernel_map.taps:
        raise ValueError(f"the weights have {weight.shape[0]} taps, the map {kernel_map.taps}")
    if source[2] != kernel_map.rows:
        raise ValueError(f"the map leads back to {kernel_map.rows} rows, not {source[2]}")
    grad, weight = checked(grad), checked(weight)
    to_x = to_skip = sums = weights = total = None
    if grad_sums is not None:
        assert out is not None
        grad = total = statistics_gradient(grad, out, grad_sums)
    layer = _Layer(source, kept, weight, grad, pairs(kernel_map), mirrored)
    if to_input:
        to_x, to_skip, sums = input_gradient(layer)
    if to_weight:
        weights = weight_gradient(layer)
    return to_x, to_skip, sums, weights, total


class _Layer(NamedTuple):
    """A convolution whose gradients are wanted, its arguments checked once for all of them."""

    source: tuple[int, int, int, int, int, int, int]
    kept: list[Tensor]
    weight: Tensor
    grad: Tensor
    back: tuple[int, int, int, int, int, int]
    mirrored: bool


def input_gradient(layer: _Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate the gradient of ``out`` to the inputs."""
    x, skip, _, x_channels, skip_channels, scale, shift = layer.source
    grad, weight = layer.grad, layer.weight
    to_x = torch.empty_like(layer.kept[0])
    to_skip = torch.empty_like(layer.kept[1]) if skip_channels else grad.new_empty(0)
    sums = torch.empty((2, weight.shape[1]) if scale else 0, dtype=torch.float64)
    _kernels.input_gradient(
        grad.data_ptr(), grad.shape[0], weight.shape[2], weight.data_ptr(), *layer.back,
        layer.mirrored, x, skip, x_channels, skip_channels, scale, shift,
        0, 0, to_x.data_ptr(),
        to_skip.data_ptr(), sums.data_ptr() if scale else 0, torch.get_num_threads(),
    )  # fmt: skip
    return to_x, to_skip, sums


def weight_gradient(layer: _Layer) -> Tensor:
    """Return the gradient of the weights, (K, C_in, C_out)."""
    weights = torch.empty_like(layer.weight)
    _kernels.weight_gradient(
        *layer.source, layer.grad.data_ptr(), *layer.grad.shape, *layer.back, layer.mirrored,
        weights.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return weights


def statistics_gradient(grad: Tensor, out: Tensor, grad_sums: Tensor) -> Tensor:
    """Return ``grad + grad_sums[0] + 2 * out * grad_sums[1]``."""
    out, grad_sums = checked(out), grad_sums.to(torch.float64).contiguous()
    total = torch.empty_like(out)
    _kernels.statistics_gradient(
        grad.data_ptr(), out.data_ptr(), grad_sums.data_ptr(), *out.shape, total.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return total


def _source(
    x: Tensor, skip: Tensor | None, channels: int, scale: Tensor | None, shift: Tensor | None
) -> tuple[tuple[int, int, int, int, int, int, int], list[Tensor]]:
    """Return the addresses and sizes of an input, and the arrays to keep alive meanwhile."""
    kept = [checked(x)]
    rows, x_channels = x.shape
    skip_address = skip_channels = scale_address = shift_address = 0
    if skip is not None:
        kept.append(checked(skip))
        skip_address, skip_channels = kept[-1].data_ptr(), skip.shape[1]
        if skip.shape[0] != rows:
            raise ValueError(f"both sources must have {rows} rows, the second has {skip.shape[0]}")
    if x_channels + skip_channels != channels:
        raise ValueError(f"the weights take {channels} channels, not {x_channels + skip_channels}")
    if scale is not None and shift is not None:
        kept += [checked(scale), checked(shift)]
        scale_address, shift_address = kept[-2].data_ptr(), kept[-1].data_ptr()
        if scale.numel() != channels or shift.numel() != channels:
            raise ValueError(f"scale and shift must have {channels} channels")
    return (
        kept[0].data_ptr(),
        skip_address,
        rows,
        x_channels,
        skip_channels,
        scale_address,
        shift_address,
    ), kept


def _connect(
    keys_in: Tensor, keys_out: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> KernelMap:
    kernel_map = empty_map(len(keys_out), kernel_size**dim, keys_out)
    rows_in, rows_out, spans, *_, block = pairs(kernel_map)
    _kernels.connect(
        keys_in.data_ptr(), len(keys_in), keys_out.data_ptr(), len(keys_out), dim,
        axis_bits(spatial_size), kernel_size, block, rows_in, rows_out, spans,
        torch.get_num_threads(),
    )  # fmt: skip
    return kernel_map
