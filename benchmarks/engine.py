"""Hold our engine against its bars on a CPU: ratios to other engines, peaks, memory and scaling.

Engines take turns in one run on the packaged events, so that drift of the machine hits all alike::

    python -m benchmarks.engine                      # everything, about ten minutes
    python -m benchmarks.engine race --size 192      # one part
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backends import registry, weights
from backends.agreement import TOLERANCE, rel_rmse
from backends.loss import event_cross_entropy
from backends.sscn import cpu
from backends.sscn.adapter import Pyramid, SiteTensor
from backends.sscn.cpu.arrays import count_pairs
from backends.uresnet import UResNet, UResNetConfig
from harness.events.batches import benchmark_batch
from harness.events.open import open_events
from harness.instruments.memory import ResidentMemory
from harness.profile.ceilings import copy_bandwidth, fma_peak

CONFIG = UResNetConfig()  # 16 filters, depth 5
PARTS = ("race", "bf16", "maps", "roofline", "convolutions", "memory", "threads", "sites")


@dataclass(frozen=True)
class Events:
    """A fixed batch of packaged events."""

    sites: Tensor
    features: Tensor
    labels: Tensor
    size: int
    batch: int

    @classmethod
    def draw(cls, size: int, batch: int) -> Events:
        """Choose the same events for every engine."""
        arrays, _ = benchmark_batch(open_events("sample", size=size), batch, 0)
        sites, features, labels = (
            torch.as_tensor(arrays[name]).contiguous() for name in ("sites", "features", "labels")
        )
        return cls(sites, features, labels, size, batch)


class Contender:
    """One engine with the UResNet, and the passes that are timed."""

    def __init__(self, name: str, precision: str = "fp32") -> None:
        self.backend = registry.load(name, dim=3, device="cpu", precision=precision)
        self.network = UResNet(self.backend, CONFIG)
        weights.load(self.network, weights.initial(CONFIG, 3))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, fused=True)

    def tensor(self, events: Events) -> Any:
        """Return the engine's tensor, without maps."""
        return self.network.tensor(events.sites, events.features, events.size, events.batch)

    def cold(self, events: Events) -> Tensor:
        """Run a forward pass that builds its maps."""
        self._switch(training=False)
        with torch.no_grad():
            return self.network(self.tensor(events))

    def step(self, events: Events) -> None:
        """Run a training step that builds its maps."""
        self._switch(training=True)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(self.tensor(events))
        event_cross_entropy(logits, events.labels, events.sites[:, 0], events.batch).backward()
        self.optimizer.step()

    def _switch(self, training: bool) -> None:
        """Change the mode only where it differs: walking all modules takes milliseconds."""
        if self.network.training != training:
            self.network.train(training)

    def warmed(self, events: Events) -> Callable[[], Tensor]:
        """Return a forward pass on maps that are there."""
        x = self.tensor(events)
        self.network.eval()
        with torch.no_grad():
            self.network(x)

        def run() -> Tensor:
            with torch.no_grad():
                return self.network(self.backend.with_features(x, events.features))

        return run


def milliseconds(function: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time functions in turns, after one untimed call each, every other turn in reverse.

    Threads of one engine may still spin when the next one begins.
    """
    for function in functions.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for _ in range(rounds):
        for name in order:
            samples[name].append(milliseconds(functions[name]))
        order.reverse()
    return samples


def spread(samples: list[float]) -> str:
    """Describe samples in milliseconds by their median and minimum."""
    return f"{statistics.median(samples):8.1f} (min {min(samples):.1f}) ms"


def verdict(met: bool) -> str:
    """Say whether a bar is met."""
    return "met" if met else "NOT MET"


def race(options: argparse.Namespace, ours: Contender) -> None:
    """Cold forward and training step against the other engines."""
    names = [name for name in options.against if registry.probe(name).capabilities is not None]
    others = {name: Contender(name) for name in names}
    for size in options.size:
        events = Events.draw(size, options.batch)
        print(f"\n{size} px, batch {options.batch}, {len(events.sites)} sites")
        for phase, bar in (("cold", 5.0), ("step", 4.0)):
            samples = in_turns(
                {
                    name: partial(getattr(contender, phase), events)
                    for name, contender in {"sscn": ours, **others}.items()
                },
                options.rounds,
            )
            for name, times in samples.items():
                print(f"  {phase:5} {name:10} {spread(times)}")
            medians = {name: statistics.median(times) for name, times in samples.items()}
            mine = medians.pop("sscn")
            if medians:
                fastest = min(medians, key=medians.__getitem__)
                ratio = medians[fastest] / mine
                least = min(samples[fastest]) / min(samples["sscn"])
                print(
                    f"  {phase:5} {ratio:.2f} times faster than {fastest} (of minima {least:.2f}); "
                    f"bar {bar:.0f}: {verdict(ratio >= bar)}"
                )


def bf16(options: argparse.Namespace, ours: Contender) -> None:
    """Products of bf16 against float32, and the error of the logits against those."""
    exact, rounded = Contender("sscn"), Contender("sscn", "bf16")  # weights of the beginning
    bound = TOLERANCE["bf16"].forward
    print(f"\nbf16 is in the processor: {cpu.instruction_set() == 'avx512_bf16'}")
    events = {size: Events.draw(size, options.batch) for size in options.size}
    errors = {
        size: rel_rmse(rounded.cold(drawn), exact.cold(drawn)) for size, drawn in events.items()
    }
    for size, drawn in events.items():
        for phase in ("cold", "step"):
            samples = in_turns(
                {
                    name: partial(getattr(contender, phase), drawn)
                    for name, contender in {"fp32": exact, "bf16": rounded}.items()
                },
                options.rounds,
            )
            ratio = statistics.median(samples["fp32"]) / statistics.median(samples["bf16"])
            print(
                f"{size} px {phase}: fp32 {spread(samples['fp32'])}, bf16 "
                f"{spread(samples['bf16'])}: {ratio:.2f} times faster"
            )
            if phase == "cold":
                met = ratio > 1 and errors[size] < bound
                print(f"  error {errors[size]:.1e}; bars 1 and {bound:g}: {verdict(met)}")


def build_maps(ours: Contender, events: Events) -> Pyramid:
    """Sort the sites and build every map that the network needs."""
    x: SiteTensor = ours.tensor(events)
    for level in range(CONFIG.depth):
        x.pyramid.submanifold(level, 3)
        if level + 1 < CONFIG.depth:
            x.pyramid.down(level)
    return x.pyramid


def maps(options: argparse.Namespace, ours: Contender) -> None:
    """Share of map building in the cold forward."""
    for size in options.size:
        events = Events.draw(size, options.batch)
        samples = in_turns(
            {"maps": partial(build_maps, ours, events), "cold": partial(ours.cold, events)},
            options.rounds,
        )
        share = statistics.median(samples["maps"]) / statistics.median(samples["cold"])
        print(
            f"\n{size} px: maps {spread(samples['maps'])} of cold {spread(samples['cold'])}: "
            f"{share:.1%}; bar 10 %: {verdict(share < 0.1)}"
        )


def needed(ours: Contender, events: Events) -> tuple[float, float]:
    """Count the operations and the bytes that a forward pass cannot do without.

    Operations are two a multiply-add over existing pairs. Bytes: each layer's input rows, weights,
    pairs (five bytes each) and output rows once, and residuals once.
    """
    count = {"operations": 0.0, "bytes": 0.0}
    original, together = cpu.convolve, cpu.Forward

    def counting(x: Tensor, skip: Any, weight: Tensor, kernel_map: Any, *rest: Any) -> Any:
        out = original(x, skip, weight, kernel_map, *rest)
        _, cin, cout = weight.shape
        pairs = count_pairs(kernel_map)
        count["bytes"] += 5 * pairs if kernel_map.tensors else 0
        count["operations"] += 2 * pairs * cin * cout
        rows = x.numel() + (0 if skip is None else skip.numel()) + out[0].numel()
        residual = rest[2]
        count["bytes"] += 4 * (rows + weight.numel())
        count["bytes"] += 0 if residual is None else 4 * residual.numel()
        return out

    cpu.convolve = counting  # type: ignore[assignment]
    del cpu.Forward  # one layer after the other, each by the function
    try:
        ours.cold(events)
    finally:
        cpu.convolve, cpu.Forward = original, together  # type: ignore[misc]
    return count["operations"], count["bytes"]


def roofline(options: argparse.Namespace, ours: Contender) -> None:
    """Compare the warm forward pass with the least time that its work takes."""
    peak, copy = fma_peak(options.threads), copy_bandwidth()
    print(f"\nFMA peak {peak / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.0f} GB/s")
    for size in options.size:
        events = Events.draw(size, options.batch)
        operations, moved = needed(ours, events)
        bound = (operations / peak + moved / copy) * 1e3
        warm = in_turns({"warm": ours.warmed(events)}, options.rounds)["warm"]
        ratio = statistics.median(warm) / bound
        print(
            f"{size} px: {operations / 1e9:.2f} GFLOP and {moved / 1e6:.0f} MB bound it to "
            f"{bound:.1f} ms; warm {spread(warm)}: {ratio:.2f} times that; "
            f"bar 2: {verdict(ratio <= 2)}"
        )


def convolutions(options: argparse.Namespace, ours: Contender) -> None:
    """Measure single submanifold convolutions as a share of the FMA peak."""
    events = Events.draw(options.size[0], options.batch)
    keys, _ = cpu.sort_sites(events.sites, events.size)
    connection = cpu.submanifold_map(keys, 3, 3, events.size)
    pairs = count_pairs(connection.forward)
    print(f"\nsubmanifold 3^3 on {len(keys)} sites, {pairs / len(keys):.1f} pairs a site")
    for channels in (16, 32, 48, 64, 80):
        x, weight = torch.randn(len(keys), channels), torch.randn(27, channels, channels)

        def run(x: Tensor = x, weight: Tensor = weight) -> None:
            cpu.convolve(x, None, weight, connection.forward, None, None, None, False)

        run()
        peak = fma_peak(options.threads)  # beside each, as clocks drift
        seconds = min(milliseconds(run) for _ in range(4 * options.rounds)) / 1e3
        rate = 2 * pairs * channels**2 / seconds
        bar = f"bar 60 %: {verdict(rate >= 0.6 * peak)}" if channels >= 32 else "no bar"
        print(
            f"  {channels} channels: {seconds * 1e3:.2f} ms, {rate / 1e9:.0f} of "
            f"{peak / 1e9:.0f} GFLOP/s, {rate / peak:.0%}; {bar}"
        )


def memory(options: argparse.Namespace, ours: Contender) -> None:
    """Compare peak resident memory over the baseline, each engine in a process of its own."""
    names = [name for name in options.against if registry.probe(name).capabilities is not None]
    for size in options.size:
        for phase in ("cold", "step"):
            peaks = {}
            for name in ("sscn", *names):
                command = [sys.executable, "-m", "benchmarks.engine", "peak-of", name, phase]
                command += ["--size", str(size), "--batch", str(options.batch)]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                peaks[name] = json.loads(result.stdout.splitlines()[-1])
            mine = peaks.pop("sscn")
            listed = ", ".join(f"{name} {peak / 1e6:.1f}" for name, peak in peaks.items())
            least = min(peaks.values(), default=float("inf"))
            print(
                f"{size} px {phase}: sscn {mine / 1e6:.1f} MB over the baseline; {listed}: "
                f"{verdict(mine < least)}"
            )


def peak_of(name: str, phase: str, events: Events) -> int:
    """Return the resident bytes that a first pass adds to those of the engine and its network."""
    contender = Contender(name)
    small = Events(
        torch.tensor([[0, 0, 0, z] for z in range(4)], dtype=torch.int32),
        torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), 32, 1,
    )  # fmt: skip
    contender.cold(small)  # libraries load what they load lazily
    found = ResidentMemory().measure(partial(getattr(contender, phase), events))
    if not found["rss_peak_reset"]:
        raise RuntimeError("the kernel does not let a process reset its peak of memory")
    return found["peak_rss_bytes"] - found["baseline_bytes"]


def threads(options: argparse.Namespace, ours: Contender) -> None:
    """Compare the cold forward on one thread and on all."""
    for size in options.size:
        events = Events.draw(size, options.batch)

        def run(number: int, events: Events = events) -> None:
            torch.set_num_threads(number)
            ours.cold(events)

        samples = in_turns({"1": partial(run, 1), "2": partial(run, 2)}, options.rounds)
        torch.set_num_threads(options.threads)
        gain = statistics.median(samples["1"]) / statistics.median(samples["2"])
        print(
            f"\n{size} px: one thread {spread(samples['1'])}, two {spread(samples['2'])}: "
            f"{gain:.2f} times; bar 1.8: {verdict(gain >= 1.8)}"
        )


def sites(options: argparse.Namespace, ours: Contender) -> None:
    """Measure the cost of a site from ten thousand sites to a million.

    Every turn of a small batch is as many passes as take about as long as one of the largest: the
    machine has then drifted alike for all.
    """
    one = len(Events.draw(512, 8).sites) / 8
    batches = [
        Events.draw(512, max(1, round(wanted / one))) for wanted in (10_000, 100_000, 1_000_000)
    ]
    passes = [round(len(batches[-1].sites) / len(events.sites)) for events in batches]

    def turn(events: Events, number: int) -> None:
        for _ in range(number):
            ours.cold(events)

    times = in_turns(
        {
            str(place): partial(turn, events, number)
            for place, (events, number) in enumerate(zip(batches, passes, strict=True))
        },
        max(3, options.rounds // 3),
    )
    costs = []
    for samples, events, number in zip(times.values(), batches, passes, strict=True):
        costs.append(statistics.median(samples) / number / len(events.sites) * 1e6)
        print(f"{len(events.sites):8d} sites, {number:3d} times a turn: {costs[-1]:.0f} ns a site")
    deviation = max(costs) / min(costs) - 1
    print(f"from least to most {deviation:.0%}; bar 15 %: {verdict(deviation <= 0.15)}")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--size", type=int, action="append")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", nargs="*", default=["spconv", "minkowski"])
    options = parser.parse_args()
    options.size = options.size or [192, 512, 768]
    torch.set_num_threads(options.threads)
    if options.part[0] == "peak-of":
        _, name, phase = options.part
        print(json.dumps(peak_of(name, phase, Events.draw(options.size[0], options.batch))))
        return
    unknown = set(options.part) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {unknown.pop()}; choose of {', '.join(PARTS)}")
    print(f"{options.threads} threads, {cpu.instruction_set()}, torch {torch.__version__}")
    ours = Contender("sscn")
    for part in options.part:
        globals()[part](options, ours)


if __name__ == "__main__":
    main()
