"""Our engine in plain torch, any device and float type: what the operations mean.

A kernel map is a table (rows, K) of int32: the input row that tap k of the kernel meets at each
output row, or -1. Taps are numbered as in torch's weights, the last axis fastest.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from backends.contract import InvalidBatch
from backends.sscn.kernels import Connection, KernelMap, axis_bits, demorton, morton


def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys; see ``kernels.Kernels``."""
    bounds = sites[:, 1:]
    if len(sites) and (int(bounds.min()) < 0 or int(bounds.max()) >= spatial_size):
        raise InvalidBatch(f"a site lies outside a volume of {spatial_size} voxels a side")
    if len(sites) and int(sites[:, 0].min()) < 0:
        raise InvalidBatch("a site has a negative batch index")
    keys, order = morton(sites, axis_bits(spatial_size)).sort()
    repeated = (keys[1:] == keys[:-1]).nonzero()
    if len(repeated):
        site = sites[order[repeated[0, 0]]].tolist()
        raise InvalidBatch(f"the site {site} is given twice; sum or drop duplicates first")
    return keys, order


def tap_offsets(kernel_size: int, dim: int, device: torch.device) -> Tensor:
    """Return the taps of an odd, centred kernel as displacements, (K, 1 + dim) int64."""
    reach = kernel_size // 2
    steps = range(-reach, reach + 1)
    offsets = [(0, *step) for step in itertools.product(steps, repeat=dim)]
    return torch.tensor(offsets, device=device)


def lookup(keys: Tensor, wanted: Tensor) -> Tensor:
    """Find the row of each wanted key among ascending keys, (M,) int32, -1 where it is absent."""
    if len(keys) == 0:
        return torch.full_like(wanted, -1, dtype=torch.int32)
    position = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[position] == wanted, position, -1).int()


def table(
    keys_in: Tensor, keys_out: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> KernelMap:
    """Build the kernel map between two sets of sites for an odd, centred kernel."""
    bits = axis_bits(spatial_size)
    sites = demorton(keys_out, bits, dim)
    columns = []
    for offset in tap_offsets(kernel_size, dim, keys_in.device):
        reached = sites + offset
        inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < spatial_size)).all(1)
        rows = lookup(keys_in, morton(reached * inside[:, None], bits))
        columns.append(torch.where(inside, rows, -1))
    return KernelMap((torch.stack(columns, 1),), len(keys_out), len(columns))


def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> Connection:
    """Connect the sites of a level with each other."""
    same = table(keys, keys, dim, kernel_size, spatial_size)
    return Connection(same, same, True)


def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, Connection]:
    """Connect sites with their parents for kernel 2 and stride 2."""
    coarse, parent = (keys >> dim).unique(return_inverse=True)
    taps = 2**dim
    tap = keys & (taps - 1)
    rows = torch.arange(len(keys), device=keys.device)
    down = torch.full((len(coarse), taps), -1, dtype=torch.int32, device=keys.device)
    down[parent, tap] = rows.int()
    up = torch.full((len(keys), taps), -1, dtype=torch.int32, device=keys.device)
    up[rows, tap] = parent.int()
    forward, backward = KernelMap((down,), len(coarse), taps), KernelMap((up,), len(keys), taps)
    return coarse, Connection(forward, backward, False)


def dilated(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> Tensor:
    """Return the keys of every site that an odd, centred kernel reaches, ascending."""
    bits = axis_bits(spatial_size)
    offsets = tap_offsets(kernel_size, dim, keys.device)
    reached = (demorton(keys, bits, dim)[:, None] + offsets).reshape(-1, dim + 1)
    inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < spatial_size)).all(1)
    return morton(reached[inside], bits).unique()


def ordinary_map(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> tuple[Tensor, Connection]:
    """Connect sites with every site that an odd, centred kernel reaches; its keys first."""
    keys_out = dilated(keys, dim, kernel_size, spatial_size)
    forward = table(keys, keys_out, dim, kernel_size, spatial_size)
    backward = table(keys_out, keys, dim, kernel_size, spatial_size)
    return keys_out, Connection(forward, backward, True)


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
    """Convolve, add the residual, and sum up the result; see ``kernels.Kernels``."""
    inputs = _wide(_activated(_joined(x, skip), scale, shift))
    out = inputs.new_zeros((kernel_map.rows, weight.shape[2]))
    for tap, rows_in, rows_out in _pairs(kernel_map, x.device):
        out.index_add_(0, rows_out, inputs[rows_in] @ _wide(weight[tap]))
    if residual is not None:
        out += residual
    out = out.to(x.dtype)
    sums = out.new_zeros(0, dtype=torch.float64)
    if statistics:
        exact = out.double()
        sums = torch.stack([exact.sum(0), exact.square().sum(0)])
    return out, sums


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    mirrored: bool,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate the gradient of ``out`` to the inputs; see ``kernels.Kernels``."""
    back = (weight.flip(0) if mirrored else weight).transpose(1, 2)
    gradient, sums = convolve(grad, None, back, kernel_map, None, None, None, False)
    if scale is not None:
        inputs = _joined(x, skip)
        gradient = gradient * (_activated(inputs, scale, shift) > 0)
        exact = gradient.double()
        sums = torch.stack([(exact * inputs).sum(0), exact.sum(0)])
        gradient = (gradient * scale).to(x.dtype)
    to_x, to_skip = gradient.split([x.shape[1], gradient.shape[1] - x.shape[1]], 1)
    return to_x.contiguous(), to_skip.contiguous() if skip is not None else x.new_zeros(0), sums


def weight_gradient(
    x: Tensor,
    skip: Tensor | None,
    grad: Tensor,
    kernel_map: KernelMap,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """Return the gradient of the weights, (K, C_in, C_out); see ``kernels.Kernels``."""
    inputs, grad = _wide(_activated(_joined(x, skip), scale, shift)), _wide(grad)
    out = inputs.new_zeros((kernel_map.taps, inputs.shape[1], grad.shape[1]))
    for tap, rows_in, rows_out in _pairs(kernel_map, x.device):
        out[tap] = inputs[rows_in].T @ grad[rows_out]
    return out.to(x.dtype)


def statistics_gradient(grad: Tensor, out: Tensor, grad_sums: Tensor) -> Tensor:
    """Return ``grad + grad_sums[0] + 2 * out * grad_sums[1]``."""
    return (grad + grad_sums[0] + 2 * out * grad_sums[1]).to(out.dtype)


def fold(
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    rows: int,
    eps: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the norm of a batch into scale and shift; see ``kernels.Kernels``."""
    mean, square = (sums / rows).unbind(0)
    variance = (square - mean * mean).clamp(min=0)
    inverse = (variance + eps).rsqrt()
    scale = weight * inverse
    shift = bias - mean * scale
    running_mean.lerp_(mean.to(weight.dtype), momentum)
    running_var.lerp_((variance * (rows / (rows - 1))).to(weight.dtype), momentum)
    return scale.to(weight.dtype), shift.to(weight.dtype), torch.stack([mean, inverse])


def fold_gradient(
    to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate gradients through ``fold``; see ``kernels.Kernels``."""
    (to_scale, to_shift), (mean, inverse) = to_norm, moments
    to_weight = (to_scale - to_shift * mean) * inverse
    # The variance enters through inverse = (variance + eps)^(-1/2).
    to_square = to_weight * weight * inverse.square() * (-0.5 / rows)
    to_sum = to_shift * weight * inverse * (-1 / rows) - 2 * mean * to_square
    return torch.stack([to_sum, to_square]), to_weight.to(weight.dtype), to_shift.to(weight.dtype)


def _joined(x: Tensor, skip: Tensor | None) -> Tensor:
    return x if skip is None else torch.cat([x, skip], 1)


def _activated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None:
        return x
    assert shift is not None
    return (x * scale + shift).relu()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pairs(kernel_map: KernelMap, device: torch.device) -> list[tuple[int, Tensor, Tensor]]:
    """List (tap, input rows, output rows) of the taps that meet anything."""
    if not kernel_map.tensors:
        rows = torch.arange(kernel_map.rows, device=device)
        return [(0, rows, rows)]
    rows_in = kernel_map.tensors[0]
    pairs = []
    for tap in range(kernel_map.taps):
        rows_out = (rows_in[:, tap] >= 0).nonzero().squeeze(1)
        if len(rows_out):
            pairs.append((tap, rows_in[rows_out, tap], rows_out))
    return pairs


def inverted(order: Tensor) -> Tensor:
    """Return the place of each row in an order; see ``kernels.Kernels``."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def take(rows: Tensor, order: Tensor, bias: Tensor | None) -> Tensor:
    """Put rows in another order, a bias added to each; see ``kernels.Kernels``."""
    taken = rows.index_select(0, order)
    return taken if bias is None else taken + bias
