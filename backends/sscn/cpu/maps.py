"""Sorting of sites and construction of gather maps by the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from backends.contract import InvalidBatch
from backends.sscn.cpu import _kernels
from backends.sscn.cpu.arrays import empty_map, pairs
from backends.sscn.kernel_map import GatherMap, KernelMap, axis_bits
from backends.sscn.reference import dilated

_MOST_ROWS = 2**31 - 1


def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys; see ``KernelSet``."""
    rows, dim = len(sites), sites.shape[1] - 1
    bits = axis_bits(spatial_size)
    if bits > (21 if dim == 3 else 31) or rows > _MOST_ROWS:
        raise InvalidBatch(f"{rows} sites at {spatial_size} voxels per side are too many to number")
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
            f"the site {sites[bad].tolist()} lies outside a volume of {spatial_size} voxels "
            "per side"
        )
    return keys, order


def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> KernelMap:
    """Build the map from the sites of a level to themselves; see ``KernelSet``."""
    same = _odd_map(keys, keys, dim, kernel_size, spatial_size)
    return KernelMap(same, same, True)


def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, KernelMap]:
    """Build the map from sites to their parents; see ``KernelSet``."""
    rows, taps = len(keys), 2**dim
    coarse, first = torch.empty_like(keys), keys.new_empty(rows, dtype=torch.int32)
    parents = _kernels.coarsen(keys.data_ptr(), rows, dim, coarse.data_ptr(), first.data_ptr())
    maps = []
    for number, connect in ((parents, _kernels.connect_down), (rows, _kernels.connect_up)):
        gather_map = empty_map(number, taps, keys)
        rows_in, rows_out, spans, *_, block = pairs(gather_map)
        connect(
            keys.data_ptr(), rows, first.data_ptr(), parents, dim, block, rows_in, rows_out, spans,
            torch.get_num_threads(),
        )  # fmt: skip
        maps.append(gather_map)
    return coarse[:parents], KernelMap(maps[0], maps[1], False)


def ordinary_map(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> tuple[Tensor, KernelMap]:
    """Build the map to all sites that an odd, centred kernel reaches; see ``KernelSet``."""
    reached = dilated(keys, dim, kernel_size, spatial_size)
    forward = _odd_map(keys, reached, dim, kernel_size, spatial_size)
    backward = _odd_map(reached, keys, dim, kernel_size, spatial_size)
    return reached, KernelMap(forward, backward, True)


def _odd_map(
    keys_in: Tensor, keys_out: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> GatherMap:
    """Build the gather map between two sets of sites for an odd, centred kernel."""
    gather_map = empty_map(len(keys_out), kernel_size**dim, keys_out)
    rows_in, rows_out, spans, *_, block = pairs(gather_map)
    _kernels.connect(
        keys_in.data_ptr(), len(keys_in), keys_out.data_ptr(), len(keys_out), dim,
        axis_bits(spatial_size), kernel_size, block, rows_in, rows_out, spans,
        torch.get_num_threads(),
    )  # fmt: skip
    return gather_map
