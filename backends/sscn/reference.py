"""The ``reference`` kernel set: plain torch for any device and float type.

It defines the results that other kernel sets must give. Its gather maps are tables (rows, K) int32
of the input row that each tap reads at each output row, -1 where the tap meets no site.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from backends.contract import InvalidBatch
from backends.sscn.kernel_map import GatherMap, KernelMap, axis_bits, demorton, morton
from backends.sscn.layerwise import LayerwiseKernelSet


def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys; see ``KernelSet``."""
    bounds = sites[:, 1:]
    if len(sites) and (int(bounds.min()) < 0 or int(bounds.max()) >= spatial_size):
        raise InvalidBatch(f"a site lies outside a volume of {spatial_size} voxels per side")
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


def lookup(keys: Tensor, queries: Tensor) -> Tensor:
    """Return the row of each queried key among ascending keys, (M,) int32, -1 if it is absent."""
    if len(keys) == 0:
        return torch.full_like(queries, -1, dtype=torch.int32)
    position = torch.searchsorted(keys, queries).clamp(max=len(keys) - 1)
    return torch.where(keys[position] == queries, position, -1).int()


def table(
    keys_in: Tensor, keys_out: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> GatherMap:
    """Build the gather map between two sets of sites for an odd, centred kernel."""
    bits = axis_bits(spatial_size)
    sites = demorton(keys_out, bits, dim)
    columns = []
    for offset in tap_offsets(kernel_size, dim, keys_in.device):
        reached = sites + offset
        inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < spatial_size)).all(1)
        rows = lookup(keys_in, morton(reached * inside[:, None], bits))
        columns.append(torch.where(inside, rows, -1))
    return GatherMap((torch.stack(columns, 1),), len(keys_out), len(columns))


def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> KernelMap:
    """Build the map from the sites of a level to themselves; see ``KernelSet``."""
    same = table(keys, keys, dim, kernel_size, spatial_size)
    return KernelMap(same, same, True)


def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, KernelMap]:
    """Build the map from sites to their parents; see ``KernelSet``."""
    coarse, parent = torch.unique(keys >> dim, return_inverse=True)
    taps = 2**dim
    tap = keys & (taps - 1)
    rows = torch.arange(len(keys), device=keys.device)
    down = torch.full((len(coarse), taps), -1, dtype=torch.int32, device=keys.device)
    down[parent, tap] = rows.int()
    up = torch.full((len(keys), taps), -1, dtype=torch.int32, device=keys.device)
    up[rows, tap] = parent.int()
    forward, backward = GatherMap((down,), len(coarse), taps), GatherMap((up,), len(keys), taps)
    return coarse, KernelMap(forward, backward, False)


def dilated(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> Tensor:
    """Return the keys of every site that an odd, centred kernel reaches, ascending."""
    bits = axis_bits(spatial_size)
    offsets = tap_offsets(kernel_size, dim, keys.device)
    reached = (demorton(keys, bits, dim)[:, None] + offsets).reshape(-1, dim + 1)
    inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < spatial_size)).all(1)
    unique: Tensor = torch.unique(morton(reached[inside], bits))
    return unique


def ordinary_map(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> tuple[Tensor, KernelMap]:
    """Build the map to all sites that an odd, centred kernel reaches; see ``KernelSet``."""
    keys_out = dilated(keys, dim, kernel_size, spatial_size)
    forward = table(keys, keys_out, dim, kernel_size, spatial_size)
    backward = table(keys_out, keys, dim, kernel_size, spatial_size)
    return keys_out, KernelMap(forward, backward, True)


def convolve(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    gather_map: GatherMap,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
    slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Convolve, add the residual, and sum the result; see ``KernelSet``."""
    inputs = _wide(_activated(_joined(x, skip), scale, shift, slope))
    out = inputs.new_zeros((gather_map.rows, weight.shape[2]))
    for tap, rows_in, rows_out in _pairs(gather_map, x.device):
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
    gather_map: GatherMap,
    mirrored: bool,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate the gradient of ``out`` to the input; see ``LayerwiseKernelSet``."""
    back = (weight.flip(0) if mirrored else weight).transpose(1, 2)
    gradient, sums = convolve(grad, None, back, gather_map, None, None, None, False)
    if scale is not None:
        inputs = _joined(x, skip)
        positive = _normed(inputs, scale, shift) > 0
        gradient = torch.where(positive, gradient, slope * gradient)
        exact = gradient.double()
        sums = torch.stack([(exact * inputs).sum(0), exact.sum(0)])
        gradient = (gradient * scale).to(x.dtype)
    widths = (x.shape[1], gradient.shape[1] - x.shape[1])
    to_x, to_skip = torch.split_with_sizes(gradient, widths, 1)
    return to_x.contiguous(), to_skip.contiguous() if skip is not None else x.new_zeros(0), sums


def weight_gradient(
    x: Tensor,
    skip: Tensor | None,
    grad: Tensor,
    gather_map: GatherMap,
    scale: Tensor | None,
    shift: Tensor | None,
    slope: float = 0.0,
) -> Tensor:
    """Return the gradient of the weights, (K, C_in, C_out); see ``LayerwiseKernelSet``."""
    inputs, grad = _wide(_activated(_joined(x, skip), scale, shift, slope)), _wide(grad)
    out = inputs.new_zeros((gather_map.taps, inputs.shape[1], grad.shape[1]))
    for tap, rows_in, rows_out in _pairs(gather_map, x.device):
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
    """Fold the norm of a batch into scale and shift; see ``KernelSet``."""
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
    """Return the gradients of the inputs of ``fold``; see ``KernelSet``."""
    (to_scale, to_shift), (mean, inverse) = to_norm, moments
    to_weight = (to_scale - to_shift * mean) * inverse
    # The variance enters through inverse = (variance + eps)^(-1/2).
    to_square = to_weight * weight * inverse.square() * (-0.5 / rows)
    to_sum = to_shift * weight * inverse * (-1 / rows) - 2 * mean * to_square
    return torch.stack([to_sum, to_square]), to_weight.to(weight.dtype), to_shift.to(weight.dtype)


def inverted(order: Tensor) -> Tensor:
    """Return the inverse of a permutation; see ``KernelSet``."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def take(rows: Tensor, order: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows in another order, with a bias added to each; see ``KernelSet``."""
    reordered = rows.index_select(0, order)
    if bias is None:
        return reordered
    return reordered.add_(bias) if bias.dtype == reordered.dtype else reordered + bias


def _joined(x: Tensor, skip: Tensor | None) -> Tensor:
    return x if skip is None else torch.cat([x, skip], 1)


def _normed(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    assert shift is not None
    return x * scale + shift


def _activated(x: Tensor, scale: Tensor | None, shift: Tensor | None, slope: float) -> Tensor:
    return x if scale is None else leaky_relu(_normed(x, scale, shift), slope)


def _wide(x: Tensor) -> Tensor:
    """Return 16-bit values as float32, others unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pairs(gather_map: GatherMap, device: torch.device) -> list[tuple[int, Tensor, Tensor]]:
    """Return (tap, input rows, output rows) for each tap that meets a site."""
    if not gather_map.tensors:
        rows = torch.arange(gather_map.rows, device=device)
        return [(0, rows, rows)]
    rows_in = gather_map.tensors[0]
    pairs = []
    for tap in range(gather_map.taps):
        rows_out = (rows_in[:, tap] >= 0).nonzero().squeeze(1)
        if len(rows_out):
            pairs.append((tap, rows_in[rows_out, tap], rows_out))
    return pairs


class ReferenceKernels(LayerwiseKernelSet):
    """The functions of this module as a kernel set."""

    name = "reference"
    sort_sites = staticmethod(sort_sites)
    submanifold_map = staticmethod(submanifold_map)
    strided_map = staticmethod(strided_map)
    ordinary_map = staticmethod(ordinary_map)
    convolve = staticmethod(convolve)
    input_gradient = staticmethod(input_gradient)
    weight_gradient = staticmethod(weight_gradient)
    statistics_gradient = staticmethod(statistics_gradient)
    fold = staticmethod(fold)
    fold_gradient = staticmethod(fold_gradient)
    inverted = staticmethod(inverted)
    take = staticmethod(take)


REFERENCE = ReferenceKernels()
