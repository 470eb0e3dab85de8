"""Kernel maps on the device: sites are sorted once, neighbours searched, rows ordered by taps.

A map of this set has the tensors ``(table, order, taps, counts)`` and is divided into tiles of
``blocks.tile_rows`` rows:

* ``order``, (rows,) int64: the output row at each position. Rows that have the same taps are
  adjacent, so that a tile has few taps that only some of its rows have.
* ``table``, (taps, rows) int32: the input row of a tap at each *position*, -1 where there is none.
* ``taps``, (tiles, taps) int32 and ``counts``, (tiles,) int32: the taps that any row of a tile
  has, in ascending order, and their number.

All maps that are requested together, for a network those of all its levels, are built by the same
launches: one that searches, one sort of all rows by their map and their taps, and one that writes
the tiles. Each program finds its map, a *job*, in a small array of numbers from the host.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from backends.contract import InvalidBatch
from backends.sscn import reference
from backends.sscn.cuda import blocks
from backends.sscn.cuda.blocks import tile_rows
from backends.sscn.cuda.launching import on_device_of_first
from backends.sscn.cuda.symbols import cdiv
from backends.sscn.kernel_map import GatherMap, KernelMap, axis_bits

BLOCK = 256
"""Rows per program in the kernels that have one thread per row."""

PAIRS = 2048
"""Pairs of a row and a tap per program in the search."""

ALIGNED = 4
"""Parts of an array begin at multiples of this number, so that their addresses are aligned."""

NO_JOBS = {
    "JOBS": 0, "TAPS": 0, "ROWS": 0, "LEAST": 0, "SMALL": 0, "LARGE": 0, "ALIGNED": ALIGNED,
}  # fmt: skip
"""The constants of ``coarsen`` without jobs."""

NEIGHBOUR = tl.constexpr(0)
"""Kind of map: from the sites that a centred kernel reaches."""

CHILD = tl.constexpr(1)
"""Kind of map: from the sites of the next finer level, a convolution of stride 2."""

PARENT = tl.constexpr(2)
"""Kind of map: from the sites of the next coarser level, an inverse convolution."""


class _Counted(NamedTuple):
    """Numbers of sites of a level and of the coarser ones.

    Attributes
    ----------
    sizes : list of int
        The finest level first.
    ends : Tensor
        (blocks, columns) int32: for each block of rows, the numbers of sites up to its end.
    """

    sizes: list[int]
    ends: Tensor


class _Levels(NamedTuple):
    """The keys of a level and of coarser ones in one array.

    Attributes
    ----------
    keys : Tensor
        The array.
    starts, sizes : list of int
        Place and size of each level.
    """

    keys: Tensor
    starts: list[int]
    sizes: list[int]

    def coarser(self, by: int) -> Tensor:
        """Return the keys of a level, from which the levels are then known."""
        start, size = self.starts[by], self.sizes[by]
        keys = self.keys[start : start + size]
        _known[keys] = _Levels(self.keys, self.starts[by:], self.sizes[by:])
        return keys


_counts: MutableMapping[Tensor, _Counted] = WeakIdKeyDictionary()
"""Keys of a level -> the numbers of sites, so that the host does not wait for them."""

_known: MutableMapping[Tensor, _Levels] = WeakIdKeyDictionary()
"""Keys of a level -> that level and the coarser ones."""


_inverses: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
"""Order of the sites of a batch -> its inverse."""


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
    keys, order, counts, inverse, rows,
    DIM: tl.constexpr, LEVELS: tl.constexpr, INVERT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the keys in a block of sorted keys that differ from the previous one at each level.

    The last count is that of sites outside the volume. The order of the keys is inverted as well.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    key = tl.load(keys + row, mask=in_range, other=0)
    before = tl.load(keys + row - 1, mask=in_range & (row > 0), other=-1)
    if INVERT:
        place = tl.load(order + row, mask=in_range, other=0)
        tl.store(inverse + place, row, mask=in_range)
    counts += tl.program_id(0).to(tl.int64) * (LEVELS + 1)
    for level in range(LEVELS):
        new = in_range & ((key >> (level * DIM)) != (before >> (level * DIM)))
        tl.store(counts + level, tl.sum(new.to(tl.int32), 0))
    tl.store(counts + LEVELS, tl.sum((in_range & (key < 0)).to(tl.int32), 0))


@triton.jit
def _write_jobs(
    sizes, jobs, LEVELS: tl.constexpr, JOBS: tl.constexpr, TAPS: tl.constexpr,
    CHILDREN: tl.constexpr, ROWS: tl.constexpr, LEAST: tl.constexpr, SMALL: tl.constexpr,
    LARGE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the jobs of a network's maps, as ``_build`` lists those of ``network_jobs``."""
    job = tl.arange(0, JOBS)
    pair = tl.maximum(job - LEVELS, 0)
    between = job >= LEVELS
    used = job < 3 * LEVELS - 2
    up = pair % 2
    queries = tl.where(between, pair // 2 + 1 - up, job)
    sources = tl.where(between, pair // 2 + up, job)
    taps = tl.where(between, CHILDREN, TAPS).to(tl.int64)
    rows = tl.load(sizes + queries, mask=used, other=0).to(tl.int64)
    tile = tl.where(rows >= LEAST, LARGE, SMALL).to(tl.int64)
    tiles = (rows + tile - 1) // tile
    level = tl.arange(0, JOBS)
    of_level = tl.load(sizes + level, mask=level < LEVELS, other=0).to(tl.int64)
    of_level = ((of_level + ALIGNED - 1) // ALIGNED * ALIGNED)[None, :]
    jobs += job
    tl.store(jobs, _starts((rows + ROWS - 1) // ROWS, 1))
    tl.store(jobs + JOBS, _starts(tiles, 1))
    tl.store(jobs + 2 * JOBS, tl.where(between, 1 + up, 0).to(tl.int64))
    tl.store(jobs + 3 * JOBS, queries.to(tl.int64))
    tl.store(jobs + 4 * JOBS, tl.sum(tl.where(level[None, :] < queries[:, None], of_level, 0), 1))
    tl.store(jobs + 5 * JOBS, rows)
    tl.store(jobs + 6 * JOBS, tl.sum(tl.where(level[None, :] < sources[:, None], of_level, 0), 1))
    tl.store(jobs + 7 * JOBS, tl.load(sizes + sources, mask=used, other=0).to(tl.int64))
    tl.store(jobs + 8 * JOBS, taps)
    tl.store(jobs + 9 * JOBS, _starts(rows, ALIGNED))
    tl.store(jobs + 10 * JOBS, _starts(rows * taps, ALIGNED))
    tl.store(jobs + 11 * JOBS, tile)
    tl.store(jobs + 12 * JOBS, _starts(tiles * taps, ALIGNED))
    tl.store(jobs + 13 * JOBS, _starts(tiles, ALIGNED))
    tl.store(jobs + 14 * JOBS, (rows + ALIGNED - 1) // ALIGNED * ALIGNED)


@triton.jit
def _starts(sizes, ALIGNED: tl.constexpr):
    """Return the places of parts of the given sizes in one array."""
    sizes = (sizes + ALIGNED - 1) // ALIGNED * ALIGNED
    return tl.cumsum(sizes, 0) - sizes


@triton.jit(do_not_specialize=["rows"])
def coarsen(
    keys, ends, levels, jobs, rows,
    DIM: tl.constexpr, LEVELS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    JOBS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, LEAST: tl.constexpr,
    SMALL: tl.constexpr, LARGE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write the keys of all levels one after the other, and the jobs of a network's maps."""
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK + tl.arange(0, BLOCK)
    in_range = row < rows
    key = tl.load(keys + row, mask=in_range, other=0)
    before = tl.load(keys + row - 1, mask=in_range & (row > 0), other=-1)
    sizes = ends + (tl.num_programs(0).to(tl.int64) - 1) * COLUMNS
    start = block * 0
    for level in tl.static_range(LEVELS):
        at = key >> (level * DIM)
        new = (in_range & (at != (before >> (level * DIM)))).to(tl.int32)
        done = tl.load(ends + (block - 1) * COLUMNS + level, mask=block > 0, other=0)
        place = start + done + tl.cumsum(new, 0) - 1
        tl.store(levels + place, at, mask=new > 0)
        start += (tl.load(sizes + level) + ALIGNED - 1) // ALIGNED * ALIGNED
    if JOBS > 0:  # noqa: SIM102 (a constant of the kernel is tested by itself)
        if block == 0:
            _write_jobs(
                sizes, jobs, LEVELS, JOBS, TAPS, 1 << DIM, ROWS, LEAST, SMALL, LARGE, ALIGNED
            )


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


@triton.jit
def _job_of(first, program, JOBS: tl.constexpr):
    """Return the job of a program, from the number of the first program of each job."""
    return tl.sum((tl.load(first + tl.arange(0, JOBS)) <= program).to(tl.int32), 0) - 1


@triton.jit(do_not_specialize=["lane", "limit", "bits"])
def search(
    keys, jobs, tables, masks, lane, limit, bits,
    JOBS: tl.constexpr, DIM: tl.constexpr, SIZE: tl.constexpr, REACH_BITS: tl.constexpr,
    SHIFT: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the rows of all taps of a block of sites, and write a number to sort the sites by.

    The number has the job from bit SHIFT on, and the taps that the site has below.
    """
    program = tl.program_id(0)
    job = _job_of(jobs, program, JOBS)
    block = (program - tl.load(jobs + job)).to(tl.int64)
    of_job = jobs + 2 * JOBS + job
    kind = tl.load(of_job)
    level = tl.load(of_job + JOBS)
    queries = tl.load(of_job + 2 * JOBS)
    rows = tl.load(of_job + 3 * JOBS)
    sources = tl.load(of_job + 4 * JOBS)
    source_rows = tl.load(of_job + 5 * JOBS).to(tl.int32)
    taps = tl.load(of_job + 6 * JOBS)
    first_row = tl.load(of_job + 7 * JOBS)
    table = tl.load(of_job + 8 * JOBS)
    row = block * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + queries + row, mask=row < rows, other=-1)[:, None]
    tap = tl.arange(0, TAPS)[None, :]
    if kind == NEIGHBOUR:
        shift = level * DIM
        target, valid = _neighbour(
            key, tap, lane >> shift, limit >> shift, bits - level, DIM, SIZE, REACH_BITS
        )
    elif kind == CHILD:
        target = (key << DIM) | tap
        valid = (key >= 0) & (tap < taps)
    else:
        target = (key >> DIM) + tl.zeros_like(tap)
        valid = (key >= 0) & ((key & ((1 << DIM) - 1)) == tap)
    valid &= tap < taps
    low = tl.zeros((BLOCK, TAPS), tl.int32)
    high = low + source_rows
    halvings = tl.sum(((source_rows >> tl.arange(0, 32)) > 0).to(tl.int32), 0)
    for _ in range(halvings):
        middle = low + (high - low) // 2
        searching = valid & (low < high)
        smaller = tl.load(keys + sources + middle, mask=searching, other=0) < target
        low = tl.where(searching & smaller, middle + 1, low)
        high = tl.where(searching & ~smaller, middle, high)
    found = valid & (low < source_rows)
    found &= tl.load(keys + sources + low, mask=found, other=-1) == target
    place = table + tap * rows + row[:, None]
    inside = (row < rows)[:, None] & (tap < taps)
    tl.store(tables + place, tl.where(found, low, -1), mask=inside)
    mask = tl.zeros((BLOCK,), masks.dtype.element_ty)
    if SHIFT > 0:
        bit = tl.full((BLOCK, TAPS), 1, masks.dtype.element_ty) << tap
        mask += tl.sum(tl.where(found, bit, 0), 1)
        # The unused places up to the next job follow its rows.
        mask = tl.where(row < rows, mask, (1 << SHIFT) - 1)
    mask |= job.to(masks.dtype.element_ty) << SHIFT
    tl.store(masks + first_row + row, mask, mask=row < tl.load(of_job + 12 * JOBS))


@triton.jit
def list_tiles(
    jobs, tables, order, sorted_tables, rows_in_order, lists, counts,
    JOBS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reorder the table of one tile, and list the taps that any of its rows has."""
    program = tl.program_id(0)
    job = _job_of(jobs + JOBS, program, JOBS)
    tile = (program - tl.load(jobs + JOBS + job)).to(tl.int64)
    of_job = jobs + 2 * JOBS + job
    rows = tl.load(of_job + 3 * JOBS)
    taps = tl.load(of_job + 6 * JOBS)
    first_row = tl.load(of_job + 7 * JOBS)
    table = tl.load(of_job + 8 * JOBS)
    size = tl.load(of_job + 9 * JOBS)
    local = tl.arange(0, BLOCK)
    position = tile * size + local
    in_range = (local < size) & (position < rows)
    row = tl.load(order + first_row + position, mask=in_range, other=0) - first_row
    tl.store(rows_in_order + first_row + position, row, mask=in_range)
    tap = tl.arange(0, TAPS)
    inside = in_range[:, None] & (tap < taps)[None, :]
    start = table + tap[None, :] * rows
    site = tl.load(tables + start + row[:, None], mask=inside, other=-1)
    tl.store(sorted_tables + start + position[:, None], site, mask=inside)
    met = (tl.max(site, 0) >= 0).to(tl.int32)
    listed = lists + tl.load(of_job + 10 * JOBS) + tile * taps
    tl.store(listed + tl.cumsum(met, 0) - 1, tap, mask=met > 0)
    tl.store(counts + tl.load(of_job + 11 * JOBS) + tile, tl.sum(met, 0))


class Job(NamedTuple):
    """One map to build; levels are given by their places among the keys.

    Attributes
    ----------
    kind : int
        NEIGHBOUR, CHILD or PARENT.
    queries, sources : int
        Places of the output sites and of the input sites.
    taps : int
    """

    kind: int
    queries: int
    sources: int
    taps: int


@on_device_of_first
def sort_sites(sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
    """Sort sites by their Morton keys; one transfer returns the check and the counts of levels."""
    rows, dim = len(sites), sites.shape[1] - 1
    bits = axis_bits(spatial_size)
    if bits * dim > 48:
        raise InvalidBatch(f"a volume of {spatial_size} voxels per side is too large to number")
    if rows == 0:
        keys = torch.empty(rows, dtype=torch.int64, device=sites.device)
        return keys, keys.clone()
    sites = sites.contiguous()
    apart = cdiv(rows, ALIGNED) * ALIGNED
    blocks_of_rows, columns = cdiv(rows, BLOCK), bits + 2
    of_counts = cdiv(blocks_of_rows * columns, ALIGNED) * ALIGNED
    memory = torch.empty(4 * apart + of_counts, dtype=torch.int64, device=sites.device)
    unordered, keys, order, inverse = (
        memory[place : place + rows] for place in range(0, 4 * apart, apart)
    )
    both = memory[4 * apart :].view(torch.int32)
    counts, ends = (
        both[place : place + blocks_of_rows * columns].view(blocks_of_rows, columns)
        for place in (0, of_counts)
    )
    _encode[_grid(rows)](sites, unordered, rows, spatial_size, bits, DIM=dim, BLOCK=BLOCK)
    torch.sort(unordered, out=(keys, order))
    inversion = _Inversion(order, inverse, counts, ends)
    (*levels, outside), ends = _count_levels(keys, dim, bits + 1, inversion)
    _inverses[order] = inverse
    if outside:
        site = sites[order[0]].tolist()
        raise InvalidBatch(
            f"the site {site} lies outside a volume of {spatial_size} voxels per side"
        )
    if levels[0] != rows:
        again = (keys[1:] == keys[:-1]).nonzero()[0]
        site = sites[order[again]][0].tolist()
        raise InvalidBatch(f"the site {site} is given twice; sum or drop duplicates first")
    _counts[keys] = _Counted(levels, ends)
    return keys, order


def inverted(order: Tensor) -> Tensor:
    """Return the inverse of a permutation; that of ``sort_sites`` is known."""
    found = _inverses.get(order)
    return reference.inverted(order) if found is None else found


@on_device_of_first
def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> KernelMap:
    """Build the map from the sites of a level to themselves."""
    job = Job(NEIGHBOUR.value, 0, 0, kernel_size**dim)
    level = _Levels(keys, [0], [len(keys)])
    (both,) = _build(level, [job], dim, kernel_size, spatial_size)
    return KernelMap(both, both, True)


@on_device_of_first
def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, KernelMap]:
    """Build the map from sites to their parents; see ``KernelSet``."""
    levels = _levels(keys, dim, 2)
    down, up = _build(levels, _strided_jobs(0, dim), dim, 1, 1)
    return levels.coarser(1), KernelMap(down, up, False)


@on_device_of_first
def network_maps(
    keys: Tensor, dim: int, kernel_size: int, spatial_size: int, levels: int
) -> list[tuple[Tensor, KernelMap, KernelMap | None]]:
    """Build the maps of all levels together; see ``KernelSet``."""
    known = _levels(keys, dim, levels)
    maps = _build(known, network_jobs(dim, kernel_size, levels), dim, kernel_size, spatial_size)
    between = maps[levels:]
    pairs = zip(between[::2], between[1::2], strict=True)
    downs = [KernelMap(down, up, False) for down, up in pairs]
    return [
        (known.coarser(level) if level else keys, KernelMap(both, both, True), down)
        for level, (both, down) in enumerate(zip(maps, [*downs, None], strict=False))
    ]


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
            keys, candidates, rows, spread(2**bits - 1, dim), spread(spatial_size - 1, dim),
            bits, DIM=dim, SIZE=kernel_size, REACH_BITS=(kernel_size // 2).bit_length(),
            BLOCK=BLOCK,
        )  # fmt: skip
    reached = torch.unique(candidates[candidates >= 0])
    jobs = [Job(NEIGHBOUR.value, 1, 0, taps), Job(NEIGHBOUR.value, 0, 1, taps)]
    both = _Levels(torch.cat([keys, reached]), [0, rows], [rows, len(reached)])
    forward, backward = _build(both, jobs, dim, kernel_size, spatial_size, step=0)
    return reached, KernelMap(forward, backward, True)


def network_jobs(dim: int, kernel_size: int, levels: int) -> list[Job]:
    """Return the jobs of a network's maps: those within all levels, then those between them."""
    jobs = [Job(NEIGHBOUR.value, level, level, kernel_size**dim) for level in range(levels)]
    for level in range(levels - 1):
        jobs += _strided_jobs(level, dim)
    return jobs


def _strided_jobs(fine: int, dim: int) -> list[Job]:
    """Return the jobs between a level and the next coarser one, forward and backward."""
    return [
        Job(CHILD.value, fine + 1, fine, 2**dim),
        Job(PARENT.value, fine, fine + 1, 2**dim),
    ]


def _grid(rows: int) -> tuple[int]:
    """Return the number of programs for some rows, one block of rows per program."""
    return (cdiv(rows, BLOCK),)


def power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def spread(value: int, dim: int) -> int:
    """Return a coordinate with its bits at every ``dim``-th place."""
    return sum(((value >> bit) & 1) << (bit * dim) for bit in range(value.bit_length()))


def aligned(sizes: Sequence[int]) -> list[int]:
    """Return the places of some parts in one array, and its size."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + cdiv(size, ALIGNED) * ALIGNED)
    return places


def _from_host(numbers: list[list[int]], device: torch.device) -> Tensor:
    """Return numbers on the device, without a wait for it."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def search_rows(taps: int) -> int:
    """Return the number of rows of a program of the search, with so many taps per row."""
    return max(16, PAIRS // taps)


def bits_of_masks(taps: int, jobs: int) -> tuple[int, torch.dtype]:
    """Return the bits of the taps in the numbers that rows are sorted by, and their type."""
    shift = taps if taps <= 56 else 0
    small = shift + (jobs - 1).bit_length() <= 31
    return shift, torch.int32 if small else torch.int64


class _Inversion(NamedTuple):
    """An order and memory for its inverse, and for the counts of keys in that order."""

    order: Tensor
    inverse: Tensor
    counts: Tensor
    ends: Tensor


def _count_levels(
    keys: Tensor, dim: int, levels: int, inversion: _Inversion | None = None
) -> tuple[list[int], Tensor]:
    """Count the sites of a level, of all coarser ones, and outside the volume; synchronises.

    The second value is that of ``_Counted.ends``.
    """
    grid = _grid(len(keys))
    if inversion is None:
        counts, ends = torch.empty((2, *grid, levels + 1), dtype=torch.int32, device=keys.device)
        order = inverse = keys
    else:
        order, inverse, counts, ends = inversion
    if not len(keys):
        return [0] * (levels + 1), counts
    _count_parents[grid](
        keys, order, counts, inverse, len(keys), DIM=dim, LEVELS=levels,
        INVERT=inversion is not None, BLOCK=BLOCK,
    )  # fmt: skip
    torch.cumsum(counts, 0, dtype=torch.int32, out=ends)
    return _read(ends), ends


def _read(ends: Tensor) -> list[int]:
    """Return the counts of all blocks on the host; synchronises."""
    total: list[int] = ends[-1].tolist()
    return total


def counted(keys: Tensor, dim: int, levels: int) -> _Counted:
    """Return the numbers of sites of a level and of at least so many levels in all."""
    known = _counts.get(keys)
    if known is None or len(known.sizes) < levels:
        (*sizes, _), ends = _count_levels(keys, dim, levels)
        known = _Counted(sizes, ends)
    return known


def _levels(keys: Tensor, dim: int, levels: int) -> _Levels:
    """Return the keys of a level and of the coarser ones."""
    levels_of_keys = _known.get(keys)
    if levels_of_keys is not None and len(levels_of_keys.sizes) >= levels:
        return levels_of_keys
    known = counted(keys, dim, levels)
    *starts, total = aligned(known.sizes)
    found = torch.empty(total, dtype=torch.int64, device=keys.device)
    if total:
        coarsen[_grid(len(keys))](
            keys, known.ends, found, keys, len(keys), DIM=dim, LEVELS=len(starts),
            COLUMNS=known.ends.shape[1], BLOCK=BLOCK, **NO_JOBS,
        )  # fmt: skip
    _known[keys] = levels_of_keys = _Levels(found, starts, known.sizes)
    return levels_of_keys


def _build(
    levels: _Levels,
    jobs: Sequence[Job],
    dim: int,
    kernel_size: int,
    spatial_size: int,
    *,
    step: int = 1,
) -> list[GatherMap]:
    """Build maps between sets of sites.

    Parameters
    ----------
    levels : _Levels
        The sets.
    jobs : sequence of _Job
        The maps.
    dim, kernel_size, spatial_size : int
        As for ``submanifold_map``, of the finest level.
    step : int
        1 if the sets are consecutive levels, 0 if they are of the finest level.
    """
    keys, starts, sizes = levels
    rows = [sizes[job.queries] for job in jobs]
    tiles = [cdiv(count, tile_rows(count)) for count in rows]
    taps = [job.taps for job in jobs]
    most = power_of_2(max(taps))
    block = search_rows(most)
    *row_starts, all_rows = aligned(rows)
    *table_starts, table_size = aligned([a * b for a, b in zip(rows, taps, strict=True)])
    *list_starts, list_size = aligned([a * b for a, b in zip(tiles, taps, strict=True)])
    *count_starts, count_size = aligned(tiles)
    programs = [cdiv(count, block) for count in rows]
    padded = power_of_2(len(jobs))
    never = [2**62] * (padded - len(jobs))
    numbers = [
        [sum(programs[:job]) for job in range(len(jobs))] + never,
        [sum(tiles[:job]) for job in range(len(jobs))] + never,
        *(
            [*column, *never]
            for column in (
                [job.kind for job in jobs],
                [job.queries * step for job in jobs],
                [starts[job.queries] for job in jobs],
                rows,
                [starts[job.sources] for job in jobs],
                [sizes[job.sources] for job in jobs],
                taps,
                row_starts,
                table_starts,
                [tile_rows(count) for count in rows],
                list_starts,
                count_starts,
                [cdiv(count, ALIGNED) * ALIGNED for count in rows],
            )
        ),
    ]

    def empty(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=keys.device)

    table, order = empty(table_size), empty(all_rows, torch.int64)
    lists, counts = empty(list_size), empty(count_size)
    if all_rows:
        shift, dtype = bits_of_masks(max(taps), len(jobs))
        masks = empty(all_rows, dtype)
        unordered = torch.empty_like(table)
        of_jobs, bits = _from_host(numbers, keys.device), axis_bits(spatial_size)
        search[(sum(programs),)](
            keys, of_jobs, unordered, masks, spread(2**bits - 1, dim),
            spread(spatial_size - 1, dim), bits,
            JOBS=padded, DIM=dim, SIZE=kernel_size, REACH_BITS=(kernel_size // 2).bit_length(),
            SHIFT=shift, TAPS=most, BLOCK=block,
        )  # fmt: skip
        list_tiles[(sum(tiles),)](
            of_jobs, unordered, masks.sort(stable=True).indices, table, order, lists, counts,
            JOBS=padded, TAPS=most, BLOCK=max(tile for _, tile in blocks.TILES),
        )  # fmt: skip
    return [
        GatherMap(
            (
                table[table_start : table_start + count * width].view(width, count),
                order[row_start : row_start + count],
                lists[list_start : list_start + tile * width].view(tile, width),
                counts[count_start : count_start + tile],
            ),
            count,
            width,
        )
        for count, width, tile, row_start, table_start, list_start, count_start in zip(
            rows, taps, tiles, row_starts, table_starts, list_starts, count_starts, strict=True
        )
    ]
