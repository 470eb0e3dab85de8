"""The maps of a network, built by launches that are recorded once for all batches of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backends.sscn.cpu import processor
from backends.sscn.cuda import blocks, maps, symbols
from backends.sscn.cuda.launching import launch
from backends.sscn.cuda.symbols import Extent, Formulas, Operation, cdiv
from backends.sscn.cuda.tape import END, Tape, run
from backends.sscn.kernel_map import axis_bits

KERNEL_SIZE = 3
"""Of the network's submanifold convolutions."""


class NetworkMaps(NamedTuple):
    """The maps of a network for the sites of a batch.

    Attributes
    ----------
    memory : Tensor
        The memory of their arrays.
    addresses : list of int
        Of the four arrays of each map, in the order of ``maps.network_jobs``.
    """

    memory: Tensor
    addresses: list[int]


class MapPlan:
    """The launches that build the maps of a network.

    Parameters
    ----------
    keys, ends : Tensor
        Keys of a batch, and the numbers of sites as in ``maps.counted``, for their types.
    sizes : sequence of int
        Sites of each level.
    dim, spatial_size : int
        As for ``maps.network_maps``.
    """

    def __init__(
        self,
        keys: Tensor,
        ends: Tensor,
        sizes: Sequence[int],
        dim: int,
        spatial_size: int,
    ) -> None:
        kernel_size = KERNEL_SIZE
        levels = len(sizes)
        self._jobs = maps.network_jobs(dim, kernel_size, levels)
        formulas = Formulas(sizes)
        rows = [formulas.rows(job.queries) for job in self._jobs]
        most = maps.power_of_2(kernel_size**dim)
        padded = maps.power_of_2(len(self._jobs))
        per_program = maps.search_rows(most)
        shift, masks_type = maps.bits_of_masks(kernel_size**dim, len(self._jobs))
        (least, large), (_, small) = blocks.TILES
        bits = axis_bits(spatial_size)

        tape = Tape(formulas, keys.device, [])
        given_keys = tape.given((formulas.rows(0),), torch.int64)
        given_ends = tape.given((cdiv(formulas.rows(0), maps.BLOCK), ends.shape[1]), torch.int32)
        all_rows = _sum(_padded(count) for count in rows)
        table_size = _sum(
            _padded(count * job.taps) for count, job in zip(rows, self._jobs, strict=True)
        )
        table = tape.given((table_size,), torch.int32)
        order = tape.given((all_rows,), torch.int64)
        lists = tape.given((table_size,), torch.int32)
        counts = tape.given((all_rows,), torch.int32)
        of_levels = tape.empty(
            (_sum(_padded(formulas.rows(level)) for level in range(levels)),), torch.int64
        )
        jobs = tape.empty((15 * padded,), torch.int64)
        unordered = tape.empty((table_size,), torch.int32)
        self._masks = tape.empty((all_rows,), masks_type)
        self._sorted = tape.empty((all_rows,), masks_type)
        self._rows_in_order = tape.empty((all_rows,), torch.int64)
        for each in (self._masks, self._sorted, self._rows_in_order):
            each.memory.last = END  # torch sorts between the launches
        after = Tape(formulas, keys.device, [], tape)
        with symbols.recording(tape):
            launch(
                maps.coarsen, (cdiv(formulas.rows(0), maps.BLOCK),),
                given_keys, given_ends, of_levels, jobs, formulas.rows(0), DIM=dim, LEVELS=levels,
                COLUMNS=ends.shape[1], BLOCK=maps.BLOCK, JOBS=padded, TAPS=kernel_size**dim,
                ROWS=per_program, LEAST=least, SMALL=small, LARGE=large, ALIGNED=maps.ALIGNED,
            )  # fmt: skip
            launch(
                maps.search, (_sum(cdiv(count, per_program) for count in rows),),
                of_levels, jobs, unordered, self._masks, maps.spread(2**bits - 1, dim),
                maps.spread(spatial_size - 1, dim), bits,
                JOBS=padded, DIM=dim, SIZE=kernel_size, REACH_BITS=(kernel_size // 2).bit_length(),
                SHIFT=shift, TAPS=most, BLOCK=per_program,
            )  # fmt: skip
        tiles = _sum(
            cdiv(count, small + (large - small) * _is_greater(count, least - 1)) for count in rows
        )
        with symbols.recording(after):
            launch(
                maps.list_tiles, (tiles,),
                jobs, unordered, self._rows_in_order, table, order, lists, counts,
                JOBS=padded, TAPS=most, BLOCK=max(tile for _, tile in blocks.TILES),
            )  # fmt: skip
        last_arrays, last_launches = after.listed()
        self._places = [
            tape.array(each.memory) for each in (self._masks, self._sorted, self._rows_in_order)
        ]
        arrays, launches = tape.listed()
        self._search = processor.LaunchPlan(formulas.listed, [], arrays, launches)
        self._tile = processor.LaunchPlan(formulas.listed, [], last_arrays, last_launches)

    def build(
        self, keys: Tensor, ends: Tensor, sizes: Sequence[int], least: int
    ) -> tuple[NetworkMaps, Tensor]:
        """Build the maps of a batch; return them and memory that is no longer needed.

        Parameters
        ----------
        keys, ends : Tensor
            Sorted keys, and the numbers of sites as in ``maps.counted``.
        sizes : sequence of int
            Sites of each level.
        least : int
            Bytes that the returned memory must have.
        """
        rows = [sizes[job.queries] for job in self._jobs]
        tiles = [cdiv(count, blocks.tile_rows(count)) for count in rows]
        taps = [job.taps for job in self._jobs]
        *row_starts, all_rows = maps.aligned(rows)
        *table_starts, table_size = maps.aligned([a * b for a, b in zip(rows, taps, strict=True)])
        *list_starts, list_size = maps.aligned([a * b for a, b in zip(tiles, taps, strict=True)])
        *count_starts, count_size = maps.aligned(tiles)
        memory = keys.new_empty(all_rows + (table_size + list_size + count_size) // 2)
        order = memory.data_ptr()
        table = order + 8 * all_rows
        lists = table + 4 * table_size
        counts = lists + 4 * list_size
        given = [keys.data_ptr(), ends.data_ptr(), table, order, lists, counts]
        first = self._search.begin(sizes)
        second = self._tile.begin(sizes)
        assert first is not None
        assert second is not None
        scratch = keys.new_empty(max(first.bytes, least), dtype=torch.uint8)
        run(keys, first, None, 0, given, scratch)
        views = [
            scratch[begin : begin + all_rows * each.dtype.itemsize].view(each.dtype)
            for each, begin in zip(
                (self._masks, self._sorted, self._rows_in_order),
                map(first.offset, self._places),
                strict=True,
            )
        ]
        torch.sort(views[0], stable=True, out=(views[1], views[2]))
        run(keys, second, first, scratch.data_ptr(), given, scratch)
        addresses = [
            address
            for places in zip(table_starts, row_starts, list_starts, count_starts, strict=True)
            for address in (
                table + 4 * places[0], order + 8 * places[1], lists + 4 * places[2],
                counts + 4 * places[3],
            )
        ]  # fmt: skip
        return NetworkMaps(memory, addresses), scratch


def _padded(size: Extent) -> Extent:
    """Return the size of a part of an array with the unused places up to the next part."""
    padded: Extent = cdiv(size, maps.ALIGNED) * maps.ALIGNED
    return padded


def _sum(sizes: object) -> Extent:
    """Return the sum of sizes."""
    total: Extent = sum(sizes)  # type: ignore[call-overload]
    return total


def _is_greater(size: Extent, limit: int) -> Extent:
    """Return 1 for a size above a limit and 0 for others, for which the plan holds as well."""
    assert not isinstance(size, int)
    return size.formulas.combine(Operation.GREATER, size, limit)
