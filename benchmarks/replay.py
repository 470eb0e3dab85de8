"""Passes of our engine on a GPU: as launched, as a CUDA graph, and the time of each kernel.

    python -m benchmarks.replay OUT.jsonl --size 192 --batch 1 --batch 4 --batch 64

The events are those of the suites. One line per batch and kind of pass: ``forward`` and ``step``,
``warm`` because a graph holds the sizes of its sites. ``--device cpu`` rehearses what needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from backends import network, registry, weights
from backends.uresnet import UResNetConfig
from harness.events import benchmark_batch, open_events

SEED = 4
"""That of the suites."""

SAMPLES = 30


def warm_pass(size: int, batch: int, device: str, training: bool) -> Callable[[], Any]:
    """Return a function that passes the events of a suite once through the network."""
    arrays, _ = benchmark_batch(open_events("sample", size=size), batch, SEED)
    sites = torch.from_numpy(arrays["sites"]).int().to(device)
    features = torch.from_numpy(arrays["features"]).float().to(device)
    engine = registry.load("sscn", dim=3, device=device, precision="fp32")
    config = UResNetConfig()
    net = network.build(engine, config)
    network.reset(net, weights.initial(config, 3))
    net = net.to(device).train(training)
    kept = net.tensor(sites, features, arrays["spatial_size"], batch)

    def run() -> Any:
        with torch.set_grad_enabled(training):
            logits = net(engine.with_features(kept, features))
            if training:
                net.zero_grad(set_to_none=True)
                logits.square().mean().backward()
        return logits

    return run


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Return the median time of a call, with its end on the device."""
    found = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


def captured(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of a call, after three calls on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def kernel_times(run: Callable[[], Any], device: str) -> dict[str, list[float]]:
    """Return the launches of each kernel in a call, and their milliseconds together."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    launches: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in found.events():
        launches[event.name] += 1
        spent = event.device_time_total if on_gpu else event.self_cpu_time_total
        times[event.name] += spent / 1e3
    return {name: [launches[name], round(spent, 4)] for name, spent in times.most_common()}


def measure(size: int, batch: int, device: str, training: bool) -> dict[str, Any]:
    """Measure one kind of pass; what fails is recorded as a sentence."""
    run = warm_pass(size, batch, device, training)
    for _ in range(3):
        run()
    found: dict[str, Any] = {
        "phase": "step" if training else "forward", "map": "warm", "size": size, "batch": batch,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "launched_ms": milliseconds(run, device),
    }  # fmt: skip
    try:
        found["kernels"] = kernel_times(run, device)
    except RuntimeError as error:
        found["kernels"] = str(error)
    if device == "cuda":
        try:
            found["graph_ms"] = milliseconds(captured(run).replay, device)
        except RuntimeError as error:
            found["graph_ms"] = str(error)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Append a line per batch and kind of pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    for batch in options.batch or [1, 4, 64]:
        for training in (False, True):
            found = measure(options.size, batch, options.device, training)
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            shown = {name: value for name, value in found.items() if name != "kernels"}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    sys.exit(main())
