"""Times the whole network on a GPU: launched layer by layer, and replayed as one CUDA graph.

    python benchmarks/device/network.py OUT.json [--size 192] [--batch 1 --batch 4]

The difference between the two is what the host costs; it is most of the time of small batches.
The maps exist already; how long the host waits for them is timed apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import triton

from backends import network, registry, weights
from backends.uresnet import UResNetConfig
from harness.events import benchmark_batch, open_events


def median_seconds(call: Any) -> float:
    """Return the median seconds of a call on the GPU."""
    return triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median") / 1e3


def host_seconds(call: Any, count: int = 20) -> float:
    """Return the seconds that the host needs to launch a call, without waiting for it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    seconds = (time.perf_counter() - start) / count
    torch.cuda.synchronize()
    return seconds


def measure(size: int, batch: int, precision: str) -> dict[str, Any]:
    """Time one forward pass with maps at hand, and with maps to build."""
    arrays, _ = benchmark_batch(open_events("sample", size=size), batch, 0)
    sites = torch.from_numpy(arrays["sites"]).int().cuda()
    features = torch.from_numpy(arrays["features"]).float().cuda()
    engine = registry.load("sscn", dim=3, device="cuda", precision=precision, options={})
    config = UResNetConfig()
    net = network.build(engine, config).cuda()
    network.reset(net, weights.initial(config, 3))
    net.eval()

    def cold() -> Any:
        return net(net.tensor(sites, features, arrays["spatial_size"], batch))

    with torch.no_grad():
        kept = net.tensor(sites, features, arrays["spatial_size"], batch)

        def warm() -> Any:
            return net(engine.with_features(kept, features))

        expected = warm()
        found = {
            "size": size, "batch": batch, "precision": precision, "sites": len(sites),
            "cold_seconds": median_seconds(cold), "warm_seconds": median_seconds(warm),
            "cold_host_seconds": host_seconds(cold), "warm_host_seconds": host_seconds(warm),
        }  # fmt: skip
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = warm()
        graph.replay()
        torch.cuda.synchronize()
        found["replay_agrees"] = bool(torch.equal(replayed, expected))
        found["replay_seconds"] = median_seconds(graph.replay)
    return found


def main() -> None:
    """Measure every batch and precision, print a line each, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--precision", action="append")
    options = parser.parse_args()
    found = []
    for size in options.size or [192]:
        for batch in options.batch or [1, 4, 64]:
            for precision in options.precision or ["fp32", "tf32", "fp16"]:
                each = measure(size, batch, precision)
                found.append(each)
                times = ", ".join(
                    f"{name.removesuffix('_seconds')} {value * 1e3:.3f} ms"
                    for name, value in each.items()
                    if name.endswith("_seconds")
                )
                print(f"{size} px, batch {batch}, {precision}, {each['sites']} sites: {times}")
                options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
