"""What a comparison says: how engines stand on each question, and what changed between runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.measured import Measured
from harness.metrics import TIME, Metric, format_value
from harness.verdict import Judgement, Pair, Verdict, judge, judge_metric


@dataclass(frozen=True)
class Standing:
    """An engine's place on one question.

    Attributes
    ----------
    over_dense, over_best
        How many times quicker than dense, and than the quickest of the *other* engines; None where
        either has no time.
    """

    measured: Measured
    over_dense: float | None
    over_best: float | None


@dataclass(frozen=True)
class Change:
    """What became of one metric of one cell."""

    measured: Measured
    metric: Metric
    before: float | None
    after: float | None
    judgement: Judgement


def standings(cells: Iterable[Measured]) -> list[Standing]:
    """Rank the engines on every question that a run asked.

    Returns
    -------
    list[Standing]
        Question by question, ordered by size, batch, phase and map; within one, the quickest first
        and what has no time last.
    """
    questions: dict[tuple[Any, ...], list[Measured]] = defaultdict(list)
    for measured in cells:
        questions[measured.question].append(measured)
    ranked = []
    for rivals in sorted(questions.values(), key=_question_order):
        times = {m.name: m.seconds for m in rivals if m.ok and m.seconds}
        dense = next(
            (times[m.name] for m in rivals if m.cell["backend"] == "dense" and m.name in times),
            None,
        )
        for m in sorted(rivals, key=lambda m: (times.get(m.name, math.inf), m.engine)):
            own = times.get(m.name)
            others = [
                times[o.name]
                for o in rivals
                if o.name in times and o.cell["backend"] != m.cell["backend"]
            ]
            ranked.append(
                Standing(
                    m,
                    dense / own if own and dense else None,
                    min(others) / own if own and others else None,
                )
            )
    return ranked


def _question_order(rivals: Sequence[Measured]) -> tuple[Any, ...]:
    c = rivals[0].cell
    keys = ("device", "precision", "dim", "phase", "map", "size", "batch", "events.seed")
    return tuple(c[key] for key in keys)


def changes(before: Mapping[str, Measured], after: Mapping[str, Measured]) -> list[Change]:
    """Judge every cell of two runs, what matters most first.

    Parameters
    ----------
    before, after
        Pooled records by the cell's name.

    Returns
    -------
    list[Change]
        Time, memory and error of each cell, sorted by consequence and then by size of the change.
    """
    names = [*before, *(name for name in after if name not in before)]
    pairs = []
    for name in names:
        old, new = before.get(name), after.get(name)
        turns = bool(old and new and old.side.rounds.keys() & new.side.rounds.keys())
        pairs.append(Pair(old.side if old else None, new.side if new else None, turns))
    found = []
    for name, judgement in zip(names, judge(pairs), strict=True):
        old, new = before.get(name), after.get(name)
        shown = new or old
        assert shown is not None
        found.append(
            Change(
                shown, TIME, old.seconds if old else None, new.seconds if new else None, judgement
            )
        )
        if old is None or new is None or not (old.ok and new.ok):
            continue
        for metric, was, now in (
            (new.memory_metric, old.memory, new.memory),
            (new.error_metric, old.error, new.error),
        ):
            if was is not None or now is not None:
                found.append(Change(new, metric, was, now, judge_metric(was, now, metric)))
    return sorted(found, key=_consequence)


def _consequence(change: Change) -> tuple[int, float]:
    ratio = change.judgement.ratio
    size = abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else 0.0
    return change.judgement.verdict.rank, -size


def headline(cells: Mapping[str, Measured]) -> list[str]:
    """Say in a few sentences which engine is quickest and which is smallest, and how surely.

    The question that the numbers are quoted for is the one that most engines answered, and of
    those the largest events and batches; a forward pass with a cold kernel map first, because that
    is what inference on new events costs.
    """
    questions: dict[tuple[Any, ...], list[Measured]] = defaultdict(list)
    for measured in cells.values():
        if measured.ok and measured.seconds:
            questions[measured.question].append(measured)
    contests = [rivals for rivals in questions.values() if len({m.engine for m in rivals}) > 1]
    if not contests:
        return ["No question was answered by two engines, so there is nothing to rank."]
    wins = Counter(min(rivals, key=_seconds).engine for rivals in contests)
    best, won = wins.most_common(1)[0]
    quoted = max((r for r in contests if min(r, key=_seconds).engine == best), key=_telling)
    first, second, *rest = sorted(quoted, key=_seconds)
    of = f"all {len(contests)}" if won == len(contests) else f"{won} of {len(contests)}"
    sentences = [
        f"{best} is the fastest engine here: it wins {of} comparisons"
        + (f" ({_others(wins, best)})." if won < len(contests) else "."),
        f"At {first.where} ({first.sites} sites), it takes {format_value(first.seconds, 's')} "
        f"a call; {second.engine} takes {_lead(first, second)}"
        + "".join(f", {m.engine} {_seconds(m) / _seconds(first):.3g}x" for m in rest)
        + (f"; its relative error is {first.error:.1e}." if first.error is not None else "."),
    ]
    weighed = sorted((m for m in quoted if m.memory), key=lambda m: m.memory or 0.0)
    if len(weighed) > 1:
        light, heavy = weighed[0], weighed[-1]
        sentences.append(
            f"The smallest there is {light.engine} with {format_value(light.memory, 'bytes')}; "
            f"the largest, {heavy.engine}, needs {(heavy.memory or 0) / (light.memory or 1):.3g}x."
        )
    return sentences


def _seconds(measured: Measured) -> float:
    return measured.seconds or math.inf


def _telling(rivals: Sequence[Measured]) -> tuple[Any, ...]:
    c = rivals[0].cell
    return len(rivals), c["phase"] == "forward", c["map"] == "cold", c["size"], c["batch"]


def _others(wins: Counter[str], best: str) -> str:
    return ", ".join(f"{engine} {count}" for engine, count in wins.most_common() if engine != best)


def _lead(first: Measured, second: Measured) -> str:
    """How much longer the second takes, and whether that is sure."""
    found = judge([Pair(first.side, second.side, took_turns=True)])[0]
    ratio = (second.seconds or math.nan) / (first.seconds or math.nan)
    if math.isnan(found.low):
        return f"{ratio:.3g}x as long ({found.reason})"
    interval = f"95 % interval {found.low:.3g}x to {found.high:.3g}x"
    if found.verdict is Verdict.SLOWER:
        return f"{ratio:.3g}x as long ({interval})"
    return f"{ratio:.3g}x as long, too close to call ({interval})"


def tally(found: Iterable[Change]) -> str:
    """Count the verdicts, gravest first: ``1 SLOWER, 3 UNCLEAR, 20 SAME``."""
    counts = Counter(c.judgement.verdict for c in found)
    return ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v]) or "nothing to compare"


def common_drift(found: Iterable[Change]) -> float | None:
    """Median ratio of the times of all cells, where it is beyond what matters and not one engine's.

    Engines that have nothing in common do not slow down together: then it was the machine.
    """
    by_engine: dict[str, list[float]] = defaultdict(list)
    for c in found:
        if c.metric is TIME and math.isfinite(c.judgement.ratio):
            by_engine[c.measured.cell["backend"]].append(math.log(c.judgement.ratio))
    if len(by_engine) < 3:
        return None
    shifts = sorted(sorted(r)[len(r) // 2] for r in by_engine.values())
    limit = math.log1p(TIME.tolerance)
    if shifts[0] > limit or shifts[-1] < -limit:
        return math.exp(shifts[len(shifts) // 2])
    return None
