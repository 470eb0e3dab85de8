"""What a comparison says: how engines stand on each question, and what changed between runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.results.summary import Measured
from harness.results.verdict import Judgement, Pair, Verdict, judge, judge_metric
from harness.spec.metrics import TIME, Metric, format_value

MUCH_STOLEN = 0.05
"""Part of the processors' time from which a measurement counts as disturbed."""


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
    names = [
        name
        for name in dict.fromkeys([*before, *after])
        if any(name in run and run[name].tried for run in (before, after))
    ]
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


@dataclass(frozen=True)
class Finding:
    """What a run says in a few sentences, and the one question that they are about.

    Attributes
    ----------
    claim
        Which engine is fastest.
    sentences
        By how much, at what size, with what memory and error, and what the others did.
    quoted
        All engines on the question that the numbers are quoted for, the quickest first.
    """

    claim: str
    sentences: list[str]
    quoted: list[Measured]


def finding(cells: Mapping[str, Measured]) -> Finding:
    """Say which engine is quickest and which is smallest, by how much, and how surely.

    Numbers are quoted for the largest contest that the overall winner won; a forward pass with a
    cold kernel map before others, because that is what inference on new events costs.
    """
    questions: dict[tuple[Any, ...], list[Measured]] = defaultdict(list)
    for measured in cells.values():
        if measured.tried:
            questions[measured.question].append(measured)
    contests = [sorted(r, key=_seconds) for r in questions.values()]
    contests = [r for r in contests if len(_rivals(r)) > 1]
    if not contests:
        return Finding("No question was answered by two engines: there is nothing to rank.", [], [])
    wins = Counter(rivals[0].cell["backend"] for rivals in contests)
    best, won = wins.most_common(1)[0]
    own = [rivals for rivals in contests if rivals[0].cell["backend"] == best]
    quoted = max(own, key=_weight)
    leads = sorted(_seconds(_rivals(r)[1]) / _seconds(r[0]) for r in own)
    sure = _race(*_rivals(quoted)[:2]).verdict is Verdict.SLOWER
    return Finding(
        f"{best} is the fastest engine here"
        if sure
        else f"{best} looks fastest here, but this run cannot settle it",
        [_record(best, won, len(contests), leads, wins), *_quote(quoted), *_lost(quoted, contests)],
        quoted,
    )


def _seconds(measured: Measured) -> float:
    return measured.seconds if measured.ok and measured.seconds else math.inf


def _rivals(ordered: Sequence[Measured]) -> list[Measured]:
    """The quickest variant of each engine that has a time."""
    found: dict[str, Measured] = {}
    for measured in ordered:
        if _seconds(measured) < math.inf:
            found.setdefault(measured.cell["backend"], measured)
    return list(found.values())


def _weight(rivals: Sequence[Measured]) -> tuple[Any, ...]:
    c = rivals[0].cell
    return c["phase"] == "forward", c["map"] == "cold", c["size"], c["batch"]


def _record(best: str, won: int, contests: int, leads: Sequence[float], wins: Counter[str]) -> str:
    margin = f"{leads[0]:.3g}x" if len(leads) == 1 else f"{leads[0]:.3g}x to {leads[-1]:.3g}x"
    if contests == 1:
        return f"It is {margin} as fast as the next."
    others = ", ".join(f"{engine} {n}" for engine, n in wins.most_common() if engine != best)
    of = f"all {contests}" if won == contests else f"{won} of {contests}"
    return f"It wins {of} comparisons, by {margin} over the next" + (
        f"; {others}." if others else "."
    )


def _quote(quoted: Sequence[Measured]) -> list[str]:
    """The numbers of one question."""
    first, second, *rest = _rivals(quoted)
    error = "" if first.error is None else f" with a relative error of {first.error:.1e}"
    sentences = [
        f"At {first.where} ({first.sites:,} sites) {first.engine} takes "
        f"{format_value(first.seconds, 's')} a call{error}; {second.engine} takes "
        f"{_lead(first, second)}"
        + "".join(f", {m.engine} {_seconds(m) / _seconds(first):.3g}x" for m in rest)
        + "."
    ]
    weighed = sorted((m for m in _rivals(quoted) if m.memory), key=lambda m: m.memory or 0.0)
    if len(weighed) > 1:
        light, heavy = weighed[0], weighed[-1]
        sentences.append(
            f"The smallest there is {light.engine} with {format_value(light.memory, 'bytes')}; "
            f"{heavy.engine} needs {(heavy.memory or 0) / (light.memory or 1):.3g}x as much."
        )
    return sentences


def _lost(quoted: Sequence[Measured], contests: Sequence[Sequence[Measured]]) -> list[str]:
    """What became of the engines without a time in the quoted question."""
    sentences = []
    for lost in (m for m in quoted if not m.ok):
        elsewhere = [
            (m.cell["size"], m.cell["batch"], m, rivals[0])
            for rivals in contests
            for m in _rivals(rivals)
            if m.engine == lost.engine and m.cell["phase"] == lost.cell["phase"]
        ]
        sentence = f"{lost.engine} gave no time there: {lost.side.outcome}"
        if elsewhere:
            *_, found, winner = max(elsewhere, key=lambda e: e[:2])
            sentence += (
                f"; at {found.where} it takes {_seconds(found) / _seconds(winner):.3g}x as long as "
                f"{winner.engine}"
            )
        sentences.append(f"{sentence}.")
    return sentences


def _lead(first: Measured, second: Measured) -> str:
    """How much longer the second takes, and whether that is sure."""
    found = _race(first, second)
    ratio = _seconds(second) / _seconds(first)
    if math.isnan(found.low):
        return f"{ratio:.3g}x as long ({found.reason})"
    interval = f"95 % interval {found.low:.3g}x to {found.high:.3g}x"
    if found.verdict is Verdict.SLOWER:
        return f"{ratio:.3g}x as long ({interval})"
    return f"{ratio:.3g}x as long, which is not sure ({interval}; more repeats narrow it)"


def _race(first: Measured, second: Measured) -> Judgement:
    """Judge two engines of one run, which took turns, as if they were before and after."""
    return judge([Pair(first.side, second.side, took_turns=True)])[0]


@dataclass(frozen=True)
class Failure:
    """Cells of one engine that gave no time for the same reason."""

    engine: str
    outcome: str
    reason: str
    cells: list[Measured]

    @property
    def where(self) -> str:
        """Which cells; what could not even be tried is not worth a list."""
        if self.outcome == "unavailable":
            return "everywhere" if len(self.cells) > 1 else self.cells[0].where
        return "; ".join(m.where for m in self.cells)


def failures(cells: Iterable[Measured]) -> list[Failure]:
    """Group what gave no time by engine, outcome and reason; what is not installed comes last."""
    groups: dict[tuple[str, str, str], list[Measured]] = defaultdict(list)
    for m in cells:
        if not m.ok:
            groups[m.engine, m.side.outcome, m.side.reason].append(m)
    found = [Failure(*key, members) for key, members in groups.items()]
    return sorted(found, key=lambda f: f.outcome == "unavailable")


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


def disturbance(cells: Iterable[Measured]) -> str:
    """Say whether the machine's host gave much of its processors to others; else nothing."""
    suffered = [m for m in cells if m.stolen is not None and m.stolen >= MUCH_STOLEN]
    if not suffered:
        return ""
    worst = max(suffered, key=lambda m: m.stolen or 0.0)
    return (
        f"The host took up to {worst.stolen:.0%} of this virtual machine's processor time for "
        f"others ({worst.engine}, {worst.where}; {len(suffered)} cells above {MUCH_STOLEN:.0%}): "
        f"times scatter more than they would alone."
    )
