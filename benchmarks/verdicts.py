"""Rates of false alarms and of detected slow-downs by five per cent, on the engines here.

``gather`` measures rounds of real cells: in each round, three new workers take turns, two with the
unchanged engine and one in which a delay of five per cent of its duration follows every call.
``judge`` then simulates comparisons with these rounds, like those of ``run --against`` and
``compare``: with the same code on both sides (any SLOWER or FASTER is false), and with the slowed
code on one side (any verdict except SLOWER is a miss). ``gather`` can be run repeatedly to add
rounds::

    python benchmarks/verdicts.py gather --seconds 300
    python benchmarks/verdicts.py judge --rounds 12

A comparison draws rounds of one cell at random without replacement. Comparisons share rounds if
there are fewer than 200 comparisons need; the output contains the number of rounds.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.results.verdict import Pair, Side, Verdict, judge, median
from harness.run.job import Job
from harness.run.sampling import StopRule
from harness.run.source import EngineSource
from harness.run.task import Task
from harness.run.turns import measure_in_turns
from harness.run.worker_process import LocalWorker, Worker, start_local
from harness.spec.cell import Cell

OUT = Path("results/verdicts/rounds.jsonl")
ENGINES = ("sscn", "minkowski")
SLOWDOWN = 0.05
SIDES = ("one", "other", "slowed")

# Run in the worker before it starts: adds a delay in proportion to its duration to each call.
SLOW = """
import time
import harness.run.workload
whole = harness.run.workload.Workload.call
def slowed(subject):
    call = whole(subject)
    def run():
        start = time.perf_counter()
        result = call()
        end = start + (time.perf_counter() - start) * (1 + {slowdown})
        while time.perf_counter() < end:
            pass
        return result
    return run
harness.run.workload.Workload.call = slowed
"""

app = typer.Typer(add_completion=False, help=__doc__)


class Silent:
    """A listener that ignores samples."""

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """Ignore the samples."""


def start(task: Task) -> Worker:
    """Start a worker; on the slowed side, one in which every call takes longer."""
    if task.source.commit != "slowed":
        return start_local(task)
    python, *options, program = task.source.command(task.python)
    enter = "runpy.run_module("
    slow = f"exec({SLOW.format(slowdown=SLOWDOWN)!r}); {enter}"
    return LocalWorker([python, *options, program.replace(enter, slow)], task.job.threads)


def cell(engine: str) -> Cell:
    """Return the cell that is measured for each engine: the study's network, smallest events."""
    return Cell("verdicts", engine, size=192, batch=1, phase="forward", map="cold")


@app.command()
def gather(
    seconds: Annotated[float, typer.Option(help="Stop after the round in which these end.")] = 60.0,
    engine: Annotated[list[str] | None, typer.Option(help="Engines, in turn.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of sampling a side and round.")] = 1.5,
    out: Annotated[Path, typer.Option(help="File that the rounds are added to.")] = OUT,
) -> None:
    """Measure rounds and add them to the file."""
    engines = engine or list(ENGINES)
    done = Counter(r["engine"] for r in _rounds(out)) if out.is_file() else Counter()
    here = EngineSource.here()
    out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = min(engines, key=lambda e: done[e])
        job = Job(cell(name), rule=StopRule(budget=budget), warm_up=1.0, check=False)
        tasks = [Task(job, done[name], EngineSource(here.root, side, here.dirty)) for side in SIDES]
        began = time.monotonic()
        found = {
            task.source.commit: entries
            for task, entries in measure_in_turns(
                tasks, seed=done[name], listener=Silent(), start=start
            )
        }
        bad = [
            f"{s}: {e['outcome']} {e['reason']}" for s, e in found.items() if e["outcome"] != "ok"
        ]
        if bad:
            raise SystemExit(f"{name} could not be measured: {'; '.join(bad)}")
        line = {
            "engine": name,
            "commit": here.commit,
            "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_seconds": round(time.monotonic() - began, 2),
            "processor": found["one"]["machine"]["processor"],
            **{side: found[side]["host_seconds"] for side in SIDES},
            "turns": {side: found[side]["turn_samples"] for side in SIDES},
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done[name] += 1
        print(name, done[name], *(f"{s} {1e3 * median(line[s]):.2f} ms" for s in SIDES), flush=True)


def _rounds(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@app.command("judge")
def judge_rounds(
    rounds: Annotated[int, typer.Option(help="Rounds of a comparison.")] = 12,
    comparisons: Annotated[int, typer.Option(help="Of each kind.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of rounds.")] = 0,
    out: Annotated[Path, typer.Option(help="File of the rounds.")] = OUT,
) -> None:
    """Simulate comparisons with the rounds, and print how many verdicts were right."""
    by_engine: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in _rounds(out):
        by_engine[line["engine"]].append(line)
    enough = {name: lines for name, lines in by_engine.items() if len(lines) >= rounds}
    if not enough:
        raise SystemExit(f"no engine has {rounds} rounds in {out}; gather more, or lower --rounds")
    rng = random.Random(seed)
    same: Counter[Verdict] = Counter()
    slower: Counter[Verdict] = Counter()
    taken = []
    for _ in range(comparisons):
        lines = rng.sample(enough[rng.choice(sorted(enough))], rounds)
        first, second = rng.sample(SIDES[:2], 2)
        same[_verdict(lines, first, second)] += 1
        slower[_verdict(lines, first, "slowed")] += 1
        taken.append(sum(sum(line[first]) + sum(line["slowed"]) for line in lines))
    for name, lines in by_engine.items():
        print(f"{name}: {len(lines)} rounds, {_spread(lines)}")
    false = same[Verdict.SLOWER] + same[Verdict.FASTER]
    print(f"{comparisons} comparisons of {rounds} rounds a side, one cell each")
    print(f"same code: {100 * false / comparisons:.1f} % false; {_listed(same)}")
    found = 100 * slower[Verdict.SLOWER] / comparisons
    print(f"slowed by {100 * SLOWDOWN:g} %: {found:.1f} % found; {_listed(slower)}")
    print(f"sampling time of a comparison, both sides: {statistics.median(taken):.0f} s (median)")


def _verdict(lines: Sequence[dict[str, Any]], before: str, after: str) -> Verdict:
    one, two = (
        Side(
            {r: line[side] for r, line in enumerate(lines)},
            turns={r: line["turns"][side] for r, line in enumerate(lines) if "turns" in line},
        )
        for side in (before, after)
    )
    return judge([Pair(one, two, took_turns=True)])[0].verdict


def _spread(lines: Sequence[dict[str, Any]]) -> str:
    """Describe the measured standard deviation between processes, ``Rule.between_rounds``."""
    ratios = [median(line["one"]) / median(line["other"]) - 1 for line in lines]
    if len(ratios) < 2:
        return "too few for a spread"
    between = statistics.stdev(ratios) / 2**0.5
    low, _, high = statistics.quantiles(ratios, n=4)
    wall = statistics.median(line["wall_seconds"] for line in lines)
    return (
        f"standard deviation between processes of a round {100 * between:.1f} % "
        f"(by quartiles {100 * (high - low) / 1.349 / 2**0.5:.1f} %), {wall:.0f} s a round"
    )


def _listed(counts: Counter[Verdict]) -> str:
    return ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])


if __name__ == "__main__":
    app()
