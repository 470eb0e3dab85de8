"""Times maps and convolutions of our engine alone, against what the machine could do.

    python benchmarks/device/kernels.py OUT.json [--size 192] [--batch 4] [--precision fp16]

Every time is the median of many calls. A layer's two floors are the operations that its pairs
need, over the measured rate of a large matrix product, and the bytes that it must move, over the
measured rate of a large copy; the larger is what no kernel can beat. ``--variants`` repeats the
layers with other block shapes and orders of rows. With ``TRITON_INTERPRET=1`` and ``--device cpu``
it runs without a GPU, which times nothing of worth and shows that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.sscn import cuda
from backends.sscn.cuda import blocks, convolution, gradient, maps
from backends.sscn.kernels import Connection, KernelMap, identity
from harness.events import benchmark_batch, open_events

TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

VARIANTS: dict[str, list[tuple[Any, str, Any]]] = {
    "as it is": [],
    "tiles of 32 rows": [(blocks, "TILES", ((0, 32),))],
    "tiles of 64 rows": [(blocks, "TILES", ((0, 64),))],
    "tiles of 128 rows": [(blocks, "TILES", ((0, 128),))],
    "rows in Morton order": [(maps, "ORDERED_FROM", 2**62)],
    "rows by taps": [(maps, "ORDERED_FROM", 0)],
    "2 stages": [(convolution, "STAGES", 2), (gradient, "STAGES", 2)],
    "4 stages": [(convolution, "STAGES", 4), (gradient, "STAGES", 4)],
    "64 pairs a product": [(gradient, "PAIRS", 64)],
    "runs of 1024": [(gradient, "RUN", 1024)],
    "4096 programs": [(gradient, "PROGRAMS", 4096)],
}
"""What to try: constants of the kernels' modules, and other values for them."""

Timer = Callable[[Callable[[], Any]], float]


def device_timer(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call on the GPU."""
    import triton

    return triton.testing.do_bench(call, warmup=10, rep=50, return_mode="median") / 1e3


def host_timer(call: Callable[[], Any]) -> float:
    """Return the seconds of one call on the host."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ceilings(device: str, precision: str, timer: Timer) -> dict[str, float]:
    """Measure the rates of a large copy (bytes/s) and a large matrix product (FLOP/s)."""
    side, values = (8192, 2**28) if device == "cuda" else (256, 2**16)
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / timer(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=device, dtype=TYPES[precision]) for _ in range(2))
    return {"copy": copy, "product": 2 * side**3 / timer(lambda: a @ b)}


@contextlib.contextmanager
def changed(settings: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give constants of modules other values for a while."""
    before = [(module, name, getattr(module, name)) for module, name, _ in settings]
    try:
        for module, name, value in settings:
            setattr(module, name, value)
        blocks.convolution_blocks.cache_clear()
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        blocks.convolution_blocks.cache_clear()


def build(sites: Tensor, size: int, depth: int) -> list[tuple[str, int, int, Connection]]:
    """Return the maps of a UResNet: their name, level, input rows and connection."""
    keys, _ = cuda.sort_sites(sites, size)
    found = []
    for level in range(depth):
        rows = len(keys)
        found.append(("submanifold", level, rows, cuda.submanifold_map(keys, 3, 3, size)))
        found.append(("linear", level, rows, identity(rows)))
        if level + 1 < depth:
            keys, down = cuda.strided_map(keys, 3)
            up = Connection(down.backward, down.forward, False)
            found.append(("strided", level, rows, down))
            found.append(("inverse", level, len(keys), up))
            size //= 2
    return found


def pairs(kernel_map: KernelMap) -> int:
    """Count the pairs of input and output rows."""
    if not kernel_map.tensors:
        return kernel_map.rows
    return int((kernel_map.tensors[0] >= 0).sum())


def tile_fill(kernel_map: KernelMap) -> float:
    """Return the share of products that meet a site, of all that the tiles compute."""
    if not kernel_map.tensors:
        return 1.0
    computed = int(kernel_map.tensors[3].sum()) * blocks.tile_rows(kernel_map.rows)
    return pairs(kernel_map) / max(computed, 1)


def widths(kind: str, level: int, filters: int) -> list[tuple[int, int, int]]:
    """Return the widths (first source, second source, output) of a UResNet's layers on a map."""
    here, below = (level + 1) * filters, (level + 2) * filters
    return {
        "submanifold": [(here, 0, here), (here, here, here)],
        "linear": [(here, here, here)],
        "strided": [(here, 0, below)],
        "inverse": [(below, 0, here)],
    }[kind]


def calls(
    connection: Connection, rows: int, shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return the three computations of a layer, each with the bytes that it must move."""
    first, second, outputs = shape
    forward, backward, mirrored = connection
    channels, out_rows, taps = first + second, forward.rows, forward.taps

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device).to(dtype)

    x, skip = random(rows, first), random(rows, second) if second else None
    weight, residual = random(taps, channels, outputs), random(out_rows, outputs)
    scale, shift = torch.rand(channels, device=device), torch.randn(channels, device=device)
    item = residual.element_size()
    inputs, results = item * rows * channels, item * out_rows * outputs
    weights = item * weight.numel()
    table = forward.tensors[0].nbytes if forward.tensors else 0
    return {
        "forward": (
            lambda: cuda.convolve(x, skip, weight, forward, scale, shift, residual, False),
            inputs + weights + table + 2 * results,
        ),
        "forward with sums": (
            lambda: cuda.convolve(x, skip, weight, forward, scale, shift, residual, True),
            inputs + weights + table + 2 * results,
        ),
        "input gradient": (
            lambda: cuda.input_gradient(
                residual, weight, backward, mirrored, x, skip, scale, shift
            ),
            results + weights + table + 2 * inputs,
        ),
        "weight gradient": (
            lambda: cuda.weight_gradient(x, skip, residual, forward, scale, shift),
            inputs + results + weights + table,
        ),
    }


def layers(
    maps_: list[tuple[str, int, int, Connection]],
    options: argparse.Namespace,
    rates: dict[str, float],
    timer: Timer,
) -> Iterator[dict[str, Any]]:
    """Time every kind of layer, and say how far it is from its floor."""
    for kind, level, rows, connection in maps_:
        needed = pairs(connection.forward)
        for shape in widths(kind, level, options.filters):
            flop = 2 * needed * (shape[0] + shape[1]) * shape[2]
            chosen = calls(connection, rows, shape, TYPES[options.precision], options.device)
            for name, (call, moved) in chosen.items():
                seconds = timer(call)
                floor = max(flop / rates["product"], moved / rates["copy"])
                yield {
                    "kind": kind, "level": level, "rows": rows, "pairs": needed,
                    "widths": shape, "computes": name, "seconds": seconds, "flop": flop,
                    "bytes": moved, "floor_seconds": floor,
                    "fill": tile_fill(connection.forward),
                }  # fmt: skip


def host_cost(maps_: list[tuple[str, int, int, Connection]], device: str) -> float:
    """Return the seconds that the host takes to launch one small convolution."""
    _, _, rows, connection = maps_[-2]
    call, _ = calls(connection, rows, (16, 0, 16), torch.float32, device)["forward"]
    call()
    count = 200 if device == "cuda" else 2
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--precision", choices=list(TYPES), default="fp32")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--variants", action="store_true", help="try other shapes too")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, and write everything down."""
    options = parse()
    timer: Timer = device_timer if options.device == "cuda" else host_timer
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    arrays, _ = benchmark_batch(open_events("sample", size=options.size), options.batch, 0)
    sites = torch.from_numpy(arrays["sites"]).int().to(options.device)
    size = -(-arrays["spatial_size"] // 2**options.depth) * 2**options.depth
    rates = ceilings(options.device, options.precision, timer)
    print(f"copy {rates['copy'] / 1e9:.0f} GB/s, product {rates['product'] / 1e12:.1f} TFLOP/s")
    found: dict[str, Any] = {"options": vars(options) | {"out": str(options.out)}, **rates}
    found["sites"] = len(sites)
    for name, settings in VARIANTS.items() if options.variants else [("as it is", [])]:
        with changed(settings):
            connections = build(sites, size, options.depth)
            found[name] = {
                "maps_seconds": timer(lambda: build(sites, size, options.depth)),
                "launch_seconds": host_cost(connections, options.device),
                "layers": list(layers(connections, options, rates, timer)),
            }
        show(name, found[name], brief=options.variants)
        options.out.write_text(json.dumps(found, indent=1))


def show(name: str, measured: dict[str, Any], brief: bool) -> None:
    """Print what was measured, and the sums over the layers."""
    print(
        f"\n{name}: maps {measured['maps_seconds'] * 1e6:.0f} us, "
        f"one launch on the host {measured['launch_seconds'] * 1e6:.0f} us"
    )
    for each in measured["layers"] if not brief else []:
        first, second, outputs = each["widths"]
        source = f"{first}+{second}" if second else str(first)
        seconds = each["seconds"]
        print(
            f"{each['kind']:11} level {each['level']} {each['rows']:8} rows "
            f"{source:>7} -> {outputs:<3} {each['computes']:17} {seconds * 1e6:9.1f} us "
            f"{each['flop'] / seconds / 1e12:7.2f} TFLOP/s, "
            f"{seconds / each['floor_seconds']:6.1f} x floor, fill {each['fill']:.2f}"
        )
    totals: dict[str, list[float]] = {}
    for each in measured["layers"]:
        both = totals.setdefault(each["computes"], [0.0, 0.0])
        both[0] += each["seconds"]
        both[1] += each["floor_seconds"]
    for computes, (seconds, floor) in totals.items():
        print(
            f"  all layers, {computes:17} {seconds * 1e6:9.1f} us, {seconds / floor:6.1f} x floor"
        )


if __name__ == "__main__":
    main()
