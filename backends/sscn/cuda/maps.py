"""Kernel maps on the device: sites are sorted once, neighbours searched, rows ordered by taps.

A map of this set has the tensors ``(table, order, taps, counts)`` and is divided into tiles of
``blocks.tile_rows`` rows:

* ``order``, (rows,) int64: the output row at each position. Rows that have the same taps are
  adjacent, so that a tile has few taps that only some of its rows have.
* ``table``, (taps, rows) int32: the input row of a tap at each *position*, -1 where there is none.
* ``taps``, (tiles, taps) int32 and ``counts``, (tiles,) int32: the taps that any row of a tile
  has, in ascending order, and their number.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from backends.contract import InvalidBatch
from backends.sscn.cuda.blocks import tile_rows
from backends.sscn.cuda.launching import on_device_of_first
from backends.sscn.kernel_map import GatherMap, KernelMap, axis_bits

BLOCK = 256
"""Rows per program in the kernels of this module."""

ORDERED_FROM = 2048
"""Least rows of a map for which rows are ordered by taps; below, the launches take longer."""

_rows_above: MutableMapping[Tensor, list[int]] = WeakIdKeyDictionary()
"""Keys of a level -> numbers of sites of the coarser levels, counted by ``sort_sites``."""


@triton.jit(do_not_specialize=["rows", "spatial_size", "bits"])
def _encode(sites, keys, rows, spatial_size, bits, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Write the Morton key of each site, -1 outside the volume."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    batch = tl.load(sites + row * (DIM + 1), mask=in_range, other=0).to(tl.int64)
    inside = (batch >= 0) & (batch < 32768)  # 48 bits number the voxels
    key = batch << (bits * DIM)
    for axis in tl.static_range(DIM):
        place = tl.load(sites + row * (DIM + 1) + 1 + axis, mask=in_range, other=0).to(tl.int64)
        inside &= (place >= 0) & (place < spatial_size)
        for bit in range(bits):
            key |= ((place >> bit) & 1) << (bit * DIM + DIM - 1 - axis)
    tl.store(keys + row, tl.where(inside, key, -1), mask=in_range)


@triton.jit(do_not_specialize=["rows"])
def _count_parents(
    keys, counts, rows, DIM: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Count the keys in a block of sorted keys that differ from the previous one at each level.

    The last count is that of sites outside the volume.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    key = tl.load(keys + row, mask=in_range, other=0)
    before = tl.load(keys + row - 1, mask=in_range & (row > 0), other=-1)
    counts += tl.program_id(0).to(tl.int64) * (LEVELS + 1)
    for level in range(LEVELS):
        new = in_range & ((key >> (level * DIM)) != (before >> (level * DIM)))
        tl.store(counts + level, tl.sum(new.to(tl.int32), 0))
    tl.store(counts + LEVELS, tl.sum((in_range & (key < 0)).to(tl.int32), 0))


@triton.jit(do_not_specialize=["rows"])
def _mark_parents(keys, first, rows, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Mark the first child of each parent with 1."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    key = tl.load(keys + row, mask=in_range, other=0)
    before = tl.load(keys + row - 1, mask=in_range & (row > 0), other=-1)
    tl.store(first + row, ((key >> DIM) != (before >> DIM)).to(tl.int32), mask=in_range)


@triton.jit(do_not_specialize=["rows", "coarse_rows"])
def _connect_parents(
    keys, numbers, coarse, down, up, rows, coarse_rows, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the key of each parent, and the two tables between children and parents."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    key = tl.load(keys + row, mask=in_range, other=0)
    parent = tl.load(numbers + row, mask=in_range, other=1) - 1
    tap = key & ((1 << DIM) - 1)
    tl.store(coarse + parent, key >> DIM, mask=in_range)  # all children write the same value
    tl.store(down + tap * coarse_rows + parent, row.to(tl.int32), mask=in_range)
    for other in tl.static_range(1 << DIM):
        tl.store(up + other * rows + row, tl.where(tap == other, parent, -1), mask=in_range)


@triton.jit
def _neighbour(
    key, tap, lane, limit, bits, DIM: tl.constexpr, SIZE: tl.constexpr, REACH_BITS: tl.constexpr
):
    """Return the key of a tap's site, and whether that site lies in the volume.

    Coordinates are added in interleaved form: a carry propagates through the bits of the other
    axes if they are set, and a borrow if they are clear.
    """
    target = key
    valid = key >= 0
    for position in tl.static_range(DIM):  # the last axis has the lowest bit
        step = tl.zeros_like(key) + tap % SIZE - SIZE // 2
        tap = tap // SIZE
        distance = tl.abs(step)
        spread = tl.zeros_like(key)
        for bit in tl.static_range(REACH_BITS):
            spread |= ((distance >> bit) & 1) << (bit * DIM + position)
        axis = lane.to(tl.int64) << position
        place = key & axis
        ahead = ((key | ~axis) + spread) & axis
        behind = (place - spread) & axis
        moved = tl.where(step > 0, ahead, tl.where(step < 0, behind, place))
        kept = tl.where(step > 0, ahead > place, tl.where(step < 0, behind < place, valid))
        valid &= kept & ((distance >> bits) == 0)
        valid &= moved <= (limit.to(tl.int64) << position)
        target = (target & ~axis) | moved
    return target, valid


@triton.jit(do_not_specialize=["rows", "lane", "limit", "bits"])
def _reach(
    keys, reached, rows, lane, limit, bits,
    DIM: tl.constexpr, SIZE: tl.constexpr, REACH_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the keys of all sites that a kernel reaches from each site, -1 outside the volume."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    tap = tl.program_id(1)
    key = tl.load(keys + row, mask=in_range, other=-1)
    target, valid = _neighbour(key, tap, lane, limit, bits, DIM, SIZE, REACH_BITS)
    tl.store(reached + tap.to(tl.int64) * rows + row, tl.where(valid, target, -1), mask=in_range)


@triton.jit(
    do_not_specialize=["query_rows", "rows", "first_tap", "lane", "limit", "bits", "halvings"]
)
def _search(
    queries, keys, table, mirror, query_rows, rows, first_tap, lane, limit, bits, halvings,
    DIM: tl.constexpr, SIZE: tl.constexpr, REACH_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the row of one tap's site for each query, and write the pair to both tables."""
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = query < query_rows
    tap = first_tap + tl.program_id(1)
    key = tl.load(queries + query, mask=in_range, other=-1)
    target, valid = _neighbour(key, tap, lane, limit, bits, DIM, SIZE, REACH_BITS)
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + rows
    for _ in range(halvings):
        middle = low + (high - low) // 2
        searching = valid & (low < high)
        smaller = tl.load(keys + middle, mask=searching, other=0) < target
        low = tl.where(searching & smaller, middle + 1, low)
        high = tl.where(searching & ~smaller, middle, high)
    found = valid & (low < rows)
    found &= tl.load(keys + low, mask=found, other=-1) == target
    taps: tl.constexpr = SIZE**DIM
    back = (taps - 1 - tap).to(tl.int64)
    tl.store(mirror + back * rows + low, query.to(tl.int32), mask=found)
    tl.store(table + tap.to(tl.int64) * query_rows + query, low, mask=found)


@triton.jit(do_not_specialize=["rows"])
def _describe(table, masks, rows, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """Write a bit mask of the taps that each row has."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    mask = tl.zeros((BLOCK,), masks.dtype.element_ty)
    for tap in range(TAPS):
        site = tl.load(table + tl.cast(tap, tl.int64) * rows + row, mask=in_range, other=-1)
        mask |= (site >= 0).to(masks.dtype.element_ty) << tap
    tl.store(masks + row, mask, mask=in_range)


@triton.jit(do_not_specialize=["rows"])
def _tile(table, order, sorted_table, taps, counts, rows, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """Reorder the table of one tile, and list the taps that any of its rows has."""
    tile = tl.program_id(0).to(tl.int64)
    position = tile * BLOCK + tl.arange(0, BLOCK)
    in_range = position < rows
    row = tl.load(order + position, mask=in_range, other=0)
    count = 0
    for tap in range(TAPS):
        start = tl.cast(tap, tl.int64) * rows
        site = tl.load(table + start + row, mask=in_range, other=-1)
        tl.store(sorted_table + start + position, site, mask=in_range)
        met = tl.max(site, 0) >= 0
        tl.store(taps + tile * TAPS + count, tap, mask=met)
        count += met.to(tl.int32)
    tl.store(counts + tile, count)


@on_device_of_first
def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys; one transfer returns the check and the counts of levels."""
    rows, dim = len(sites), sites.shape[1] - 1
    bits = axis_bits(spatial_size)
    if bits * dim > 48:
        raise InvalidBatch(f"a volume of {spatial_size} voxels per side is too large to number")
    keys = torch.empty(rows, dtype=torch.int64, device=sites.device)
    if rows == 0:
        return keys, keys.clone()
    sites = sites.contiguous()
    _encode[_grid(rows)](sites, keys, rows, spatial_size, bits, DIM=dim, BLOCK=BLOCK)
    keys, order = keys.sort()
    *levels, outside = _count_levels(keys, dim, bits + 1)
    if outside:
        site = sites[order[0]].tolist()
        raise InvalidBatch(
            f"the site {site} lies outside a volume of {spatial_size} voxels per side"
        )
    if levels[0] != rows:
        again = (keys[1:] == keys[:-1]).nonzero()[0]
        site = sites[order[again]][0].tolist()
        raise InvalidBatch(f"the site {site} is given twice; sum or drop duplicates first")
    _rows_above[keys] = levels[1:]
    return keys, order


@on_device_of_first
def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> KernelMap:
    """Build the map from the sites of a level to themselves; only half the taps are searched."""
    taps = kernel_size**dim
    table = _empty_table(taps, len(keys), keys)
    _fill_tables(keys, keys, table, table, taps // 2, dim, kernel_size, spatial_size)
    both = _in_tiles(table)
    return KernelMap(both, both, True)


@on_device_of_first
def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, KernelMap]:
    """Build the map from sites to their parents; see ``KernelSet``."""
    rows = len(keys)
    above = _rows_above.get(keys)
    if not above:  # sort_sites has not counted the parents of these keys
        above = _count_levels(keys, dim, 2)[1:2]
    coarse_rows = above[0]
    coarse = torch.empty(coarse_rows, dtype=torch.int64, device=keys.device)
    down = _empty_table(2**dim, coarse_rows, keys)
    up = torch.empty((2**dim, rows), dtype=torch.int32, device=keys.device)
    if rows:
        first = torch.empty(rows, dtype=torch.int32, device=keys.device)
        _mark_parents[_grid(rows)](keys, first, rows, DIM=dim, BLOCK=BLOCK)
        numbers = first.cumsum(0, dtype=torch.int32)
        _connect_parents[_grid(rows)](
            keys, numbers, coarse, down, up, rows, coarse_rows, DIM=dim, BLOCK=BLOCK
        )
    _rows_above[coarse] = above[1:]
    return coarse, KernelMap(_in_tiles(down), _in_tiles(up), False)


@on_device_of_first
def ordinary_map(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int
) -> tuple[Tensor, KernelMap]:
    """Build the map to all sites that the kernel reaches; the host reads their number."""
    taps, rows = kernel_size**dim, len(keys)
    bits = axis_bits(spatial_size)
    candidates = torch.empty((taps, rows), dtype=torch.int64, device=keys.device)
    if rows:
        _reach[(*_grid(rows), taps)](
            keys, candidates, rows, _spread(2**bits - 1, dim), _spread(spatial_size - 1, dim),
            bits, DIM=dim, SIZE=kernel_size, REACH_BITS=(kernel_size // 2).bit_length(),
            BLOCK=BLOCK,
        )  # fmt: skip
    reached = torch.unique(candidates[candidates >= 0])
    forward = _empty_table(taps, len(reached), keys)
    backward = _empty_table(taps, rows, keys)
    _fill_tables(keys, reached, backward, forward, 0, dim, kernel_size, spatial_size)
    return reached, KernelMap(_in_tiles(forward), _in_tiles(backward), True)


def _grid(rows: int) -> tuple[int]:
    """Return the number of programs for some rows, one block of rows per program."""
    return (triton.cdiv(rows, BLOCK),)


def _empty_table(taps: int, rows: int, like: Tensor) -> Tensor:
    """Return a table without pairs."""
    return torch.full((taps, rows), -1, dtype=torch.int32, device=like.device)


def _spread(value: int, dim: int) -> int:
    """Return a coordinate with its bits at every ``dim``-th place."""
    return sum(((value >> bit) & 1) << (bit * dim) for bit in range(value.bit_length()))


def _count_levels(keys: Tensor, dim: int, levels: int) -> list[int]:
    """Count the sites of a level, of all coarser ones, and outside the volume; synchronises."""
    grid = _grid(len(keys))
    counts = torch.empty((*grid, levels + 1), dtype=torch.int32, device=keys.device)
    if len(keys):
        _count_parents[grid](keys, counts, len(keys), DIM=dim, LEVELS=levels, BLOCK=BLOCK)
    return counts.sum(0).tolist()


def _fill_tables(
    queries: Tensor,
    keys: Tensor,
    table: Tensor,
    mirror: Tensor,
    first_tap: int,
    dim: int,
    kernel_size: int,
    spatial_size: int,
) -> None:
    """Search the taps from ``first_tap`` on, and write the pairs to both tables."""
    if not len(queries) or not len(keys):
        return
    bits = axis_bits(spatial_size)
    _search[(*_grid(len(queries)), kernel_size**dim - first_tap)](
        queries, keys, table, mirror, len(queries), len(keys), first_tap,
        _spread(2**bits - 1, dim), _spread(spatial_size - 1, dim), bits, len(keys).bit_length(),
        DIM=dim, SIZE=kernel_size, REACH_BITS=(kernel_size // 2).bit_length(), BLOCK=BLOCK,
    )  # fmt: skip


def _in_tiles(table: Tensor) -> GatherMap:
    """Order the rows of a table (taps, rows) by their taps, and list the taps of each tile."""
    taps, rows = table.shape
    block = tile_rows(rows)
    tiles = triton.cdiv(rows, block)
    if rows >= ORDERED_FROM and taps < 63:
        kind = torch.int32 if taps < 31 else torch.int64
        masks = torch.empty(rows, dtype=kind, device=table.device)
        _describe[_grid(rows)](table, masks, rows, TAPS=taps, BLOCK=BLOCK)
        order = masks.sort(stable=True).indices
    else:
        order = torch.arange(rows, device=table.device)
    in_order = torch.empty_like(table)
    lists = torch.empty((tiles, taps), dtype=torch.int32, device=table.device)
    counts = torch.empty(tiles, dtype=torch.int32, device=table.device)
    if rows:
        _tile[(tiles,)](table, order, in_order, lists, counts, rows, TAPS=taps, BLOCK=block)
    return GatherMap((in_order, order, lists, counts), rows, taps)
