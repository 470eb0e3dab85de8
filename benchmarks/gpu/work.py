"""The work of the convolutions of a pass: useful products, serial steps and programs.

It depends on the values of the maps, which no kernel computes here: maps of the ``reference``
kernels are brought into the format of the ``cuda`` kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.profiling_hooks import replaced
from backends.sscn import reference
from backends.sscn.cuda import CudaKernels
from backends.sscn.cuda.blocks import tile_rows
from backends.sscn.kernel_map import GatherMap, KernelMap
from benchmarks.gpu.passes import Launch, Passes, record

WARP = 32
"""Threads of a warp, which multiply as many numbers per instruction."""


def in_tiles(gather_map: GatherMap) -> GatherMap:
    """Return a map of the ``reference`` kernels in the format of ``backends.sscn.cuda.maps``."""
    table = gather_map.tensors[0]
    rows, taps = table.shape
    met = table >= 0
    order = (met.long() << torch.arange(taps)).sum(1).sort(stable=True).indices
    tile = tile_rows(rows)
    padded = torch.zeros((-(-rows // tile) * tile, taps), dtype=torch.bool)
    padded[:rows] = met[order]
    of_tile = padded.view(-1, tile, taps).any(1)
    taps_first = of_tile.int().sort(dim=1, descending=True, stable=True).indices
    counts = of_tile.sum(1).int()
    return GatherMap((table[order].t().contiguous(), order, taps_first.int(), counts), rows, taps)


def _both_in_tiles(kernel_map: KernelMap) -> KernelMap:
    forward, backward, mirrored = kernel_map
    tiled = in_tiles(forward)
    return KernelMap(tiled, tiled if backward is forward else in_tiles(backward), mirrored)


@contextmanager
def _true_maps() -> Iterator[None]:
    """Make the maps of the ``cuda`` kernels have their true values."""

    def submanifold_map(keys: Tensor, dim: int, kernel_size: int, spatial_size: int) -> KernelMap:
        return _both_in_tiles(reference.submanifold_map(keys, dim, kernel_size, spatial_size))

    def strided_map(keys: Tensor, dim: int) -> tuple[Tensor, KernelMap]:
        coarse, down = reference.strided_map(keys, dim)
        return coarse, _both_in_tiles(down)

    with ExitStack() as stack:
        for name, function in (
            ("sort_sites", reference.sort_sites),
            ("submanifold_map", submanifold_map),
            ("strided_map", strided_map),
            ("network_maps", lambda *_: []),
        ):
            stack.enter_context(
                replaced(CudaKernels, name, lambda _, of=function: staticmethod(of))
            )
        yield


@dataclass(frozen=True)
class Work:
    """The work of one convolution.

    Attributes
    ----------
    launch : Launch
    pairs : int
        Pairs of an input row and an output row.
    steps : int
        Matrix products of all tiles, one after the other, for one block of output channels.
    longest : int
        Those of the program that has most.
    programs : int
        Programs with at least one step.
    """

    launch: Launch
    pairs: int
    steps: int
    longest: int
    programs: int

    @property
    def products(self) -> int:
        """Useful products of two numbers."""
        constants = self.launch.arguments
        return self.pairs * (constants["FIRST"] + constants["SECOND"]) * constants["OUT"]


def convolutions(passes: Passes, *, launch: bool = False) -> list[Work]:
    """Return the convolutions of a cold forward pass, the linear layers included."""
    with _true_maps():
        found = record(passes, "cold", launch=launch, keep_tensors=True)
    return [_work(each) for each in found.launches if each.kernel.__name__ == "convolve_tile"]


def _work(launch: Launch) -> Work:
    constants = launch.arguments
    depth, rows = constants["BLOCK_K"], constants["rows"]
    chunks = sum(-(-constants[source] // depth) for source in ("FIRST", "SECOND"))
    if constants["IDENTITY"]:
        return Work(launch, rows, launch.grid[0] * chunks, chunks, launch.programs)
    _, columns, most = launch.grid
    steps = constants["counts"] * chunks
    parts = (steps // constants["LEAST"]).clamp(1, most)  # as the kernel shares the steps
    longest = int((-(-steps // parts)).max())
    pairs = int((constants["table"] >= 0).sum())
    return Work(launch, pairs, int(steps.sum()), longest, int(parts.sum()) * columns)


def fewest_programs(found: list[Work]) -> int:
    """Return the fewest programs of a 3x3x3 convolution."""
    return min(work.programs for work in found if work.launch.arguments["TAPS"] == 27)
