"""The C++ kernels: float32 on the CPU, on torch's threads; see ``kernels.Kernels``.

Arrays are checked here and passed on by address. A kernel map keeps, for each block of output
rows and each tap, the pairs (input row, output row within the block): absent neighbours cost
nothing. ``SSCN_INSTRUCTION_SET`` (avx512_bf16, avx512, avx2, portable) overrides the choice of
instructions.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from backends.contract import InvalidBatch
from backends.sscn import reference
from backends.sscn.cpu import _kernels
from backends.sscn.cpu._kernels import instruction_set, instruction_sets, peak, use
from backends.sscn.cpu.arrays import empty_map, pairs
from backends.sscn.cpu.instructions import (
    CONVOLVE,
    INPUT_GRADIENT,
    INVERT,
    STATISTICS_GRADIENT,
    TAKE,
    WEIGHT_GRADIENT,
    Instructions,
    Products,
)
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
    "inverted",
    "ordinary_map",
    "peak",
    "sort_sites",
    "strided_map",
    "submanifold_map",
    "take",
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
    products: Products = Products.FLOAT32,
) -> tuple[Tensor, Tensor]:
    """Convolve, add the residual, and sum up the result."""
    instructions = Instructions()
    source = _source(instructions, x, skip, weight, kernel_map.taps, scale, shift)
    out_channels = weight.shape[2]
    out = x.new_empty((kernel_map.rows, out_channels))
    sums = torch.empty((2, out_channels) if statistics else 0, dtype=torch.float64)
    if residual is not None and residual.shape != out.shape:
        raise ValueError(f"the residual must have shape {tuple(out.shape)}")
    instructions.write(
        CONVOLVE, *source, instructions.address(weight), out_channels, *pairs(kernel_map), products,
        0 if residual is None else instructions.address(residual), out.data_ptr(),
        sums.data_ptr() if statistics else 0,
    )  # fmt: skip
    instructions.run()
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
    products: Products = Products.FLOAT32,
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
    instructions = Instructions()
    address = instructions.address
    source = _source(instructions, x, skip, weight, kernel_map.taps, scale, shift)
    if len(x) != kernel_map.rows:
        raise ValueError(f"the map leads back to {kernel_map.rows} rows, not {len(x)}")
    back = *pairs(kernel_map), mirrored
    to_x = to_skip = sums = weights = total = None
    if grad_sums is not None:
        assert out is not None
        total = torch.empty(out.shape)
        instructions.write(
            STATISTICS_GRADIENT, address(grad), address(out),
            instructions.keep(grad_sums.to(torch.float64).contiguous()), *out.shape,
            total.data_ptr(),
        )  # fmt: skip
        grad = total
    flow = address(grad), *grad.shape
    if to_input:
        to_x = torch.empty(x.shape)
        to_skip = torch.empty(0 if skip is None else skip.shape)
        sums = torch.empty(0 if scale is None else (2, weight.shape[1]), dtype=torch.float64)
        instructions.write(
            INPUT_GRADIENT, *flow, address(weight), *back, products, *source, 0, 0,
            to_x.data_ptr(), to_skip.data_ptr(), sums.data_ptr(),
        )  # fmt: skip
    if to_weight:
        weights = torch.empty(weight.shape)
        instructions.write(WEIGHT_GRADIENT, *source, *flow, *back, weights.data_ptr())
    instructions.run()
    return to_x, to_skip, sums, weights, total


def inverted(order: Tensor) -> Tensor:
    """Return the place of each row in an order."""
    instructions, places = Instructions(), torch.empty_like(order)
    instructions.write(INVERT, order.data_ptr(), len(order), places.data_ptr())
    instructions.run()
    return places


def take(rows: Tensor, order: Tensor, bias: Tensor | None) -> Tensor:
    """Put rows in another order, a bias added to each."""
    instructions = Instructions()
    number, channels = rows.shape
    if number != len(order):
        raise ValueError(f"there are {len(order)} sites, but {number} rows of features")
    out = torch.empty(rows.shape)
    instructions.write(
        TAKE, instructions.address(rows), order.data_ptr(), number, channels,
        0 if bias is None else instructions.address(bias), out.data_ptr(),
    )  # fmt: skip
    instructions.run()
    return out


def _source(
    instructions: Instructions,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    taps: int,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[int, ...]:
    """Return the words of an input that fits weights and a map of so many taps."""
    address = instructions.address
    found, channels, _ = weight.shape
    rows, x_channels = x.shape
    skip_address = skip_channels = scale_address = shift_address = 0
    if found != taps:
        raise ValueError(f"the weights have {found} taps, the map {taps}")
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
    return address(x), skip_address, rows, x_channels, skip_channels, scale_address, shift_address


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
