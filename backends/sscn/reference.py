"""Our engine in plain torch, any device and float type: what the operations mean.

A kernel map is a table (N_out, K) of int64: the input row that tap k of the kernel meets at each
output site, or -1. Taps are numbered as in torch's weights, the last axis fastest.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from backends.contract import site_keys


def tap_offsets(kernel_size: int, dim: int, device: torch.device) -> Tensor:
    """Return the taps of a kernel as displacements, (K, dim) int64.

    Odd kernels are centred; kernel 2 covers the children (0 or 1) of a coarse site.
    """
    centre = kernel_size // 2 if kernel_size % 2 else 0
    steps = range(-centre, kernel_size - centre)
    return torch.tensor(list(itertools.product(steps, repeat=dim)), device=device)


def lookup(sites: Tensor, queries: Tensor, spatial_size: int) -> Tensor:
    """Find the row of each query among unique sites.

    Parameters
    ----------
    sites, queries : Tensor
        (N, 1 + dim) and (M, 1 + dim) int64, batch index first; queries may lie outside.
    spatial_size : int
        Voxels a side.

    Returns
    -------
    Tensor
        (M,) int64, -1 where there is no such site.
    """
    if len(sites) == 0:
        return queries.new_full((len(queries),), -1)
    keys, order = site_keys(sites, spatial_size).sort()
    inside = ((queries[:, 1:] >= 0) & (queries[:, 1:] < spatial_size)).all(1)
    wanted = site_keys(queries, spatial_size)
    position = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = inside & (keys[position] == wanted)
    return torch.where(found, order[position], -1)


def kernel_map(sites_in: Tensor, sites_out: Tensor, kernel_size: int, spatial_size: int) -> Tensor:
    """Build the kernel map between two sets of sites for an odd, centred kernel."""
    offsets = tap_offsets(kernel_size, sites_in.shape[1] - 1, sites_in.device)
    columns = []
    for offset in offsets:
        queries = sites_out.clone()
        queries[:, 1:] += offset
        columns.append(lookup(sites_in, queries, spatial_size))
    return torch.stack(columns, 1)


def strided_map(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Build the kernel maps of a convolution of kernel 2 and stride 2, and of its inverse.

    Returns
    -------
    coarse : Tensor
        (M, 1 + dim) the coarse sites, in ascending order.
    down : Tensor
        (M, 2**dim) rows of the children.
    up : Tensor
        (N, 2**dim) the row of the parent in the tap that reaches it, -1 in the others.
    """
    dim = sites.shape[1] - 1
    halved = torch.cat([sites[:, :1], sites[:, 1:] // 2], 1)
    keys, parent = site_keys(halved, spatial_size // 2).unique(return_inverse=True)
    coarse = sites.new_empty((len(keys), dim + 1))
    coarse[parent] = halved
    tap = torch.zeros_like(parent)
    for column in (sites[:, 1:] % 2).unbind(1):
        tap = 2 * tap + column
    rows = torch.arange(len(sites), device=sites.device)
    down = sites.new_full((len(keys), 2**dim), -1)
    down[parent, tap] = rows
    up = sites.new_full((len(sites), 2**dim), -1)
    up[rows, tap] = parent
    return coarse, down, up


def dilated_sites(sites: Tensor, kernel_size: int, spatial_size: int) -> Tensor:
    """Return every site that an ordinary convolution reaches, in ascending order."""
    dim = sites.shape[1] - 1
    offsets = tap_offsets(kernel_size, dim, sites.device)
    offsets = torch.cat([torch.zeros_like(offsets[:, :1]), offsets], 1)
    reached = (sites[:, None] + offsets).reshape(-1, dim + 1)
    inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < spatial_size)).all(1)
    return reached[inside].unique(dim=0)


def convolve(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Gather, multiply and sum over the taps; torch derives the gradients.

    Parameters
    ----------
    features : Tensor
        (N_in, C_in).
    weight : Tensor
        (K, C_in, C_out).
    table : Tensor
        (N_out, K) kernel map.

    Returns
    -------
    Tensor
        (N_out, C_out).
    """
    out = features.new_zeros((len(table), weight.shape[2]))
    for tap in range(weight.shape[0]):
        rows = (table[:, tap] >= 0).nonzero().squeeze(1)
        if len(rows):
            out = out.index_add(0, rows, features[table[rows, tap]] @ weight[tap])
    return out
