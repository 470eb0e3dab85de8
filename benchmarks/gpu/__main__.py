"""Figures of merit of the ``cuda`` kernels that need no GPU: counts, host time and compiled code.

    python -m benchmarks.gpu                # all figures; compiles the kernels, for a minute or two
    python -m benchmarks.gpu --counts       # only those that need no compiler

The typical events of the suites at 192 px run through Triton's own compiler and launcher, on a
driver that launches nothing. Torch's operations run on the CPU: the host time is that of a small
part of the sites, for which they take microseconds. Each figure has its bound; the exit code is 1
if a bound is not met.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

SIZE, BATCH, LARGE_BATCH = 192, 4, 64
HOST_SITES = 256
HOST_PASSES = 30


@dataclass(frozen=True)
class Figure:
    """Values of one figure of merit and their bounds; ``sign`` is 1 where less is better."""

    name: str
    values: tuple[float, ...]
    bounds: tuple[float, ...]
    sign: int = 1

    @property
    def met(self) -> bool:
        """Whether all values are within their bounds."""
        pairs = zip(self.values, self.bounds, strict=True)
        return all(self.sign * (value - bound) <= 0 for value, bound in pairs)


def counts() -> Iterator[Figure]:
    """Yield the figures that are exact counts."""
    from benchmarks.gpu import work
    from benchmarks.gpu.passes import Passes, record

    passes = Passes(SIZE, BATCH)
    cold, step = (record(Passes(SIZE, BATCH), mode, planned=True) for mode in ("cold", "step"))
    yield Figure(
        "device operations, cold / step",
        (cold.device_operations, step.device_operations), (65, 200),
    )  # fmt: skip
    yield Figure("allocations, cold / step", (cold.allocations, step.allocations), (5, 10))
    yield Figure(
        "waits for the device; operations before the first",
        (len(step.waits), *step.waits[:1]), (1, 4),
    )  # fmt: skip
    found = work.convolutions(passes)
    yield Figure(
        "serial steps of the longest program, summed over a forward pass",
        (sum(each.longest for each in found),), (600,),
    )  # fmt: skip
    yield Figure(
        "fewest programs of a 3x3x3 convolution", (work.fewest_programs(found),), (132,), sign=-1
    )


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the compilers that it has called."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def host_time() -> Iterator[Figure]:
    """Yield the processor time that the host takes to compile and to launch the passes."""
    from backends.profiling_hooks import replaced
    from backends.sscn.cuda import plan
    from benchmarks.gpu.passes import MODES, Passes, known_sizes

    small = Passes(SIZE, BATCH, sites=HOST_SITES)
    with known_sizes(small), replaced(plan, "DEVICE", lambda _: "cpu"):
        start = _cpu_seconds()
        for mode in MODES:
            small.run(mode)
        compiling = _cpu_seconds() - start
        medians = []
        for mode in MODES:
            seconds = []
            gc.collect()
            for _ in range(HOST_PASSES):
                start = thread_time()
                small.run(mode)
                seconds.append(thread_time() - start)
            medians.append(median(seconds) * 1e3)
    yield Figure("host time in ms, cold / warm / step", tuple(medians), (0.35, 0.15, 0.9))
    yield Figure("seconds of compiling at the first call", (compiling,), (1,))


def code() -> Iterator[Figure]:
    """Yield the figures that are read from compiled kernels."""
    from benchmarks.gpu import assembly, work
    from benchmarks.gpu.passes import Passes, record

    known: dict[int, assembly.Assembly] = {}

    def read(compiled: object) -> assembly.Assembly:
        if id(compiled) not in known:
            known[id(compiled)] = assembly.read(compiled)
        return known[id(compiled)]

    instructions, barriers = [], 0
    for batch in (BATCH, LARGE_BATCH):
        executed, products = 0, 0
        for each in work.convolutions(Passes(SIZE, batch), launch=True):
            found = read(each.launch.compiled)
            warps = each.launch.arguments["num_warps"]
            executed += each.steps * each.launch.grid[1] * found.loop * warps
            products += each.products
            barriers = max(barriers, found.barriers)
        instructions.append(executed / (products / work.WARP))
    yield Figure(
        f"warp instructions per {work.WARP} useful products, batch {BATCH} / {LARGE_BATCH}",
        tuple(instructions), (2.0, 1.5),
    )  # fmt: skip
    yield Figure("barriers of a step", (barriers,), (2,))
    launches = record(Passes(SIZE, BATCH), "step", launch=True).launches
    all_read = [read(launch.compiled) for launch in launches]
    yield Figure(
        "spilled registers' loads and stores; shared memory of a block in KB",
        (sum(each.spills for each in all_read), max(each.shared for each in all_read) / 1024),
        (0, 99),
    )


def main(
    only_counts: Annotated[
        bool, typer.Option("--counts", help="Only counts, without a compiler.")
    ] = False,
) -> None:
    """Print the figures beside their bounds."""
    torch.set_num_threads(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        if not only_counts:
            os.environ["TRITON_CACHE_DIR"] = f"{folder}/cache"
            from benchmarks.gpu import driver

            driver.install(Path(folder))
        figures += counts()
        if not only_counts:
            figures += host_time()
            figures += code()
    table = Table("figure", "value", "bound", "")
    for each in figures:
        values, bounds = (
            " / ".join(f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in numbers)
            for numbers in (each.values, each.bounds)
        )
        table.add_row(each.name, values, bounds, "met" if each.met else "NOT MET")
    Console().print(table)
    raise typer.Exit(not all(each.met for each in figures))


if __name__ == "__main__":
    typer.run(main)
