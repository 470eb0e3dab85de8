"""Bounds of our engine's performance on a CPU, checked on records and profiles of the harness.

The harness measures cells in worker processes that take turns, compares each result with the
float64 reference, and stores the records and profiles in ``--out``. Only ``latency`` times passes
here, two forms of one network in turns::

    python -m benchmarks.engine                      # all checks
    python -m benchmarks.engine race --size 192      # one of them

The exit code is 1 if a bound is not met. A suite cannot express these checks, because they compare
precisions, numbers of threads and batch sizes in turns, and ratios with fixed bounds.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console

from backends.agreement import TOLERANCE
from backends.profiling_hooks import replaced
from backends.registry import probe
from harness.errors import BadInput
from harness.events.batches import benchmark_batch
from harness.events.open import open_events
from harness.profile.ceilings import fma_peak
from harness.profile.command import profile_cell
from harness.profile.profile import Profile, write_profile
from harness.profile.roofline import network_limit
from harness.profile.work import submanifold_pairs
from harness.results import store
from harness.run.job import Job
from harness.run.locks import device_lock
from harness.run.plan import with_events
from harness.run.rounds import Executor, Settings, run
from harness.run.sampling import StopRule
from harness.run.turns import measure_in_turns
from harness.spec.cell import SIZES, Cell, EventSpec, ModelSpec
from harness.spec.suite import TYPICAL_SEED

Record = Mapping[str, Any]

OURS = "sscn"
FASTER = {"forward": 5.0, "step": 4.0}
"""How many times faster than the fastest other engine a cold pass must be, by phase."""

THREADS_GAIN = 1.8
"""How many times faster two threads must be than one."""

SITES_DEVIATION = 0.15
"""Largest relative difference between the costs per site of small and large batches."""

SITES_BATCHES = (2, 16, 160)
"""Numbers of events of 512 px with about 10,000, 100,000 and 1,000,000 sites."""

PEAK_SHARE = 0.6
"""Least share of the FMA peak that a submanifold convolution of 32 or more channels reaches."""

ROOFLINE_RATIO = {"warm": 2.0, "cold": 1.7}
"""Largest ratio of a forward pass to its limit on the machine; cold: of one event."""

LATENCY_RATIO = 1.1
"""Largest ratio of a cold pass of one event to the time of it in C++."""

LATENCY_PASSES = 100
"""Passes per size, each on an image of its own."""

MAPS_SHARE = 0.1
"""Largest share of the construction of maps in a cold forward pass."""


@dataclass(frozen=True)
class Bound:
    """A measured value in words, and whether it is within its bound; None if it has no bound."""

    text: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "NOT MET", None: "no bound"}[self.met]
        return f"{self.text}: {verdict}"


@dataclass(frozen=True)
class Options:
    """The command line."""

    out: Path
    sizes: tuple[int, ...]
    batch: int
    rounds: int
    budget: float
    threads: int
    against: tuple[str, ...]


def cell(backend: str, size: int, batch: int, **rest: Any) -> Cell:
    """Return a cell with the suites' typical events; by default cold and forward."""
    events = EventSpec(seed=TYPICAL_SEED)
    values: dict[str, Any] = {"phase": "forward", "map": "cold", "events": events} | rest
    return Cell(suite="engine", backend=backend, size=size, batch=batch, **values)


def together(threads: Sequence[int] = (0,), check: bool = True) -> Executor:
    """Return an executor in which all cells of a round take turns, also of different questions.

    Parameters
    ----------
    threads : sequence of int
        Numbers of threads of consecutive cells; 0 for that of the run.
    check : bool
        Whether to compare with the float64 reference.
    """

    def execute(groups: Any, seed: int, listener: Any) -> Iterator[Any]:
        with device_lock("cpu", listener.say):
            rounds = itertools.groupby(itertools.chain(*groups), key=lambda task: task.round)
            for number, tasks in rounds:
                varied = [
                    replace(task, job=replace(task.job, threads=n or task.job.threads, check=check))
                    for task, n in zip(tasks, itertools.cycle(threads), strict=False)
                ]
                yield from measure_in_turns(varied, seed + number, listener)

    return execute


def measure(
    options: Options, name: str, cells: Sequence[Cell], executor: Executor | None = None
) -> list[dict[str, Any]]:
    """Measure cells and return their records; by default, cells of one question take turns."""
    settings = Settings(
        out=options.out / f"{name}.jsonl",
        repeats=options.rounds,
        rule=StopRule(budget=options.budget),
        threads=options.threads,
    )
    found = {backend: probe(backend) for backend in dict.fromkeys(c.backend for c in cells)}
    cells = with_events(cells, "sample")
    how: dict[str, Any] = {} if executor is None else {"executor": executor}
    return list(store.records(run(cells, settings, found, Console(stderr=True), **how)))


def medians(records: Sequence[Record], key: Callable[[Record], Any]) -> dict[Any, float]:
    """Return the median seconds of a call by a key of the records, of successful records."""
    samples: dict[Any, list[float]] = defaultdict(list)
    for record in records:
        if record["outcome"] == "ok":
            samples[key(record)] += record["host_seconds"]
    return {name: median(values) for name, values in samples.items()}


def memories(records: Sequence[Record]) -> dict[str, float]:
    """Return the median bytes over the baseline of a first pass, by engine."""
    peaks: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["outcome"] == "ok":
            memory = record["memory"]
            peaks[record["cell"]["backend"]].append(
                memory["peak_rss_bytes"] - memory["baseline_bytes"]
            )
    return {name: median(values) for name, values in peaks.items()}


def race(options: Options) -> Iterator[Bound]:
    """Time and memory of a cold forward pass and of a training step, against other engines."""
    engines = (OURS, *options.against)
    for size, phase in itertools.product(options.sizes, FASTER):
        cells = [cell(engine, size, options.batch, phase=phase) for engine in engines]
        records = measure(options, f"race-{size}-{phase}", cells)
        yield from race_bounds(records, f"{size} px {phase}", FASTER[phase])


def race_bounds(records: Sequence[Record], title: str, least: float) -> Iterator[Bound]:
    """Compare our records of one question with those of the other engines."""
    seconds = medians(records, key=lambda record: record["cell"]["backend"])
    memory = memories(records)
    if OURS not in seconds:
        yield Bound(f"{title}: {OURS} was not measured", False)
        return
    ours, our_memory = seconds.pop(OURS), memory.pop(OURS)
    if not seconds:
        yield Bound(f"{title}: {1e3 * ours:.2f} ms, no other engine was measured", None)
        return
    fastest = min(seconds, key=seconds.__getitem__)
    ratio = seconds[fastest] / ours
    yield Bound(
        f"{title}: {1e3 * ours:.2f} ms, {ratio:.2f} times faster than {fastest}, "
        f"at least {least:g} times",
        ratio >= least,
    )
    smallest = min(memory, key=memory.__getitem__)
    yield Bound(
        f"{title}: {our_memory / 1e6:.1f} MB over the baseline, less than the "
        f"{memory[smallest] / 1e6:.1f} MB of {smallest}",
        our_memory < memory[smallest],
    )


def bf16(options: Options) -> Iterator[Bound]:
    """Time of bf16 against float32, and its error."""
    for size, phase in itertools.product(options.sizes, FASTER):
        cells = [
            cell(OURS, size, options.batch, phase=phase, precision=p) for p in ("fp32", "bf16")
        ]
        records = measure(options, f"bf16-{size}-{phase}", cells, together())
        yield from bf16_bounds(records, f"{size} px {phase} in bf16")


def bf16_bounds(records: Sequence[Record], title: str) -> Iterator[Bound]:
    """Compare the records of both precisions; only the forward pass has a bound."""
    seconds = medians(records, key=lambda record: record["cell"]["precision"])
    if set(seconds) != {"fp32", "bf16"}:
        yield Bound(f"{title}: not measured in both precisions", False)
        return
    ratio = seconds["fp32"] / seconds["bf16"]
    forward = records[0]["cell"]["phase"] == "forward"
    yield Bound(f"{title}: {ratio:.2f} times faster than fp32", ratio > 1 if forward else None)
    if forward:
        errors = [r["error"]["rel_rmse"] for r in records if r["cell"]["precision"] == "bf16"]
        allowed = TOLERANCE["bf16"].forward
        yield Bound(
            f"{title}: error {max(errors):.1e}, at most {allowed:g}", max(errors) <= allowed
        )


def threads(options: Options) -> Iterator[Bound]:
    """Time of a cold forward pass with one thread against two."""
    for size in options.sizes:
        cells = 2 * [cell(OURS, size, options.batch)]
        records = measure(options, f"threads-{size}", cells, together(threads=(1, 2)))
        yield threads_bound(records, f"{size} px")


def threads_bound(records: Sequence[Record], title: str) -> Bound:
    """Compare the records of both numbers of threads."""
    seconds = medians(records, key=lambda record: record["machine"]["threads"])
    if set(seconds) != {1, 2}:
        return Bound(f"{title}: not measured with one and two threads", False)
    gain = seconds[1] / seconds[2]
    return Bound(
        f"{title}: two threads {gain:.2f} times faster, at least {THREADS_GAIN:g} times",
        gain >= THREADS_GAIN,
    )


def sites(options: Options) -> Iterator[Bound]:
    """Cost per site from ten thousand sites to a million."""
    cells = [cell(OURS, 512, batch) for batch in SITES_BATCHES]
    yield sites_bound(measure(options, "sites", cells, together(check=False)))


def sites_bound(records: Sequence[Record]) -> Bound:
    """Compare the seconds per site of batches of several sizes."""
    costs = {n: s / n for n, s in medians(records, key=lambda record: record["sites"]).items()}
    if len(costs) < 2:
        return Bound("cost per site: fewer than two batches were measured", False)
    deviation = max(costs.values()) / min(costs.values()) - 1
    listed = ", ".join(f"{cost * 1e9:.0f} ns at {n:,}" for n, cost in sorted(costs.items()))
    return Bound(
        f"cost per site: {listed}; from least to most {deviation:.0%}, at most "
        f"{SITES_DEVIATION:.0%}",
        deviation <= SITES_DEVIATION,
    )


def convolutions(options: Options) -> Iterator[Bound]:
    """Share of the FMA peak that single submanifold convolutions reach."""
    size = options.sizes[0]
    arrays, _ = benchmark_batch(open_events("sample", size=size), options.batch, TYPICAL_SEED)
    pairs = submanifold_pairs(arrays["sites"])
    for channels in (16, 32, 48, 64, 80):
        model = ModelSpec(filters=channels, depth=2)
        layer = cell(OURS, size, options.batch, map="warm", layer="submanifold-0", model=model)
        records = measure(options, f"convolution-{channels}", [layer])
        peak = fma_peak(options.threads)  # after each measurement, because clocks drift
        seconds = medians(records, key=lambda record: "").get("")
        if seconds is None:
            yield Bound(f"convolution of {channels} channels: not measured", False)
            continue
        rate = 2 * pairs * channels**2 / seconds
        yield Bound(
            f"convolution of {channels} channels: {rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, "
            f"{rate / peak:.0%}, at least {PEAK_SHARE:.0%} from 32 channels on",
            rate >= PEAK_SHARE * peak if channels >= 32 else None,
        )


def profile(options: Options, size: int, batch: int, state: str) -> Profile:
    """Profile a forward pass, and keep the profile."""
    chosen = with_events([cell(OURS, size, batch, map=state)], "sample")[0]
    folder = options.out / f"profile-{size}-x{batch}-{state}"
    job = Job(chosen, threads=options.threads)
    found = profile_cell(job, folder, 2 * options.budget, timeout=900.0)
    write_profile(found, folder)
    return found


def roofline(options: Options) -> Iterator[Bound]:
    """Time of forward passes compared with their limits on the machine."""
    cases = [(size, options.batch, "warm") for size in options.sizes]
    for size, batch, state in [*cases, (options.sizes[0], 1, "cold")]:
        title = f"{size} px x{batch}, {state}"
        limit = network_limit(profile(options, size, batch, state))
        if limit is None:
            yield Bound(f"{title}: the profile has no ceilings", False)
            continue
        most = ROOFLINE_RATIO[state]
        yield Bound(
            f"{title}: forward {1e3 * limit.measured:.2f} ms, {limit.ratio:.2f} times the limit, "
            f"at most {most:g} times",
            limit.ratio <= most,
        )


def maps(options: Options) -> Iterator[Bound]:
    """Share of the construction of maps in a cold forward pass."""
    for size in options.sizes:
        yield maps_bound(profile(options, size, options.batch, "cold"), f"{size} px")


def maps_bound(found: Profile, title: str) -> Bound:
    """Compare the seconds of all maps of a profile with those of the pass."""
    spent = sum(layer.seconds for layer in found.layers if layer.kind == "map")
    share = spent / found.seconds
    return Bound(
        f"{title}: maps {share:.1%} of cold, at most {MAPS_SHARE:.0%}", share <= MAPS_SHARE
    )


def latency(options: Options) -> Iterator[Bound]:
    """Time of cold passes of one event, compared with the time of them in C++."""
    import torch

    from backends import network as networks
    from backends.registry import load
    from backends.sscn.planned_network import PLANNED
    from backends.uresnet import UResNet, UResNetConfig
    from harness.run.images import BatchImages
    from harness.run.workload import sparse_batch

    torch.set_num_threads(options.threads)
    backend = load(OURS, dim=3, device="cpu", precision="fp32", options={})
    planned = networks.build(backend, UResNetConfig())
    layerwise = UResNet(backend, UResNetConfig())

    def seconds(network: Any, image: Any, phase: str) -> float:
        """Make one pass, and return its duration without that of the loss."""
        with torch.set_grad_enabled(phase == "step"):
            start = perf_counter()
            logits = network(
                network.tensor(image.sites, image.features, image.spatial_size, image.batch_size)
            )
            spent = perf_counter() - start
            if phase == "step":
                grad = torch.ones_like(logits)
                start = perf_counter()
                logits.backward(grad)
                spent += perf_counter() - start
                network.zero_grad(set_to_none=True)
        return spent

    for phase, size in itertools.product(("forward", "step"), options.sizes):
        planned.train(phase == "step")
        layerwise.train(phase == "step")
        arrays, _ = benchmark_batch(open_events("sample", size=size), 1, TYPICAL_SEED)
        images = BatchImages(sparse_batch(arrays), 2**4, TYPICAL_SEED)
        wall, native, other = [], [], []
        for image in images.take(LATENCY_PASSES):
            with _native_seconds() as spent:
                wall.append(seconds(planned, image, phase))
            assert backend.last_pass == PLANNED
            native.append(sum(spent))
            other.append(seconds(layerwise, image, phase))
        warm = slice(LATENCY_PASSES // 5, None)
        ratio = median(a / b for a, b in zip(wall[warm], native[warm], strict=True))
        yield Bound(
            f"{phase}, {size} px: {1e3 * median(wall[warm]):.2f} ms, {ratio:.2f} times the time in "
            f"C++, at most {LATENCY_RATIO:g}; layer by layer {1e3 * median(other[warm]):.2f} ms, "
            f"{median(b / a for a, b in zip(wall[warm], other[warm], strict=True)):.2f} times",
            ratio <= LATENCY_RATIO,
        )


@contextmanager
def _native_seconds() -> Iterator[list[float]]:
    """Collect the durations of the calls into C++."""
    from backends.sscn.cpu import _kernels, processor
    from backends.sscn.cpu.plan import Plan

    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = perf_counter()
            result = function(*arguments)
            spent.append(perf_counter() - start)
            return result

        return call

    with ExitStack() as stack:
        for owner, name in (
            (_kernels, "sort_sites"),
            (processor, "run"),
            (Plan, "run_forward"),
            (Plan, "run_backward"),
        ):
            stack.enter_context(replaced(owner, name, timed))
        yield spent


CHECKS = {
    check.__name__: check
    for check in (race, bf16, maps, roofline, convolutions, threads, sites, latency)
}


def main(
    check: Annotated[list[str] | None, typer.Argument(help=", ".join(CHECKS))] = None,
    size: Annotated[list[int] | None, typer.Option(help="Voxels per side of the events.")] = None,
    batch: Annotated[int, typer.Option(help="Events per call.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds, each in new processes.")] = 2,
    budget: Annotated[float, typer.Option(help="Seconds of sampling per cell and round.")] = 3.0,
    threads: Annotated[int, typer.Option(help="Threads of a worker.")] = 2,
    against: Annotated[list[str] | None, typer.Option(help="Engines to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of records and profiles.")] = None,
) -> None:
    """Measure, check the bounds, and print one line per bound."""
    unknown = set(check or ()) - set(CHECKS)
    if unknown:
        raise typer.BadParameter(
            f"there is no check {min(unknown)!r}; choose from {', '.join(CHECKS)}"
        )
    folder = out or Path("results/runs") / f"engine-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(
        folder, tuple(size or SIZES), batch, rounds, budget, threads,
        tuple(against or ("spconv", "minkowski")),
    )  # fmt: skip
    failed = False
    for name in check or CHECKS:
        try:
            for bound in CHECKS[name](options):
                typer.echo(f"{name}: {bound}")
                failed |= bound.met is False
        except BadInput as error:  # for example, an engine that crashes; the other checks still run
            typer.echo(f"{name}: {error}", err=True)
            failed = True
    typer.echo(f"records and profiles: {folder}")
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
