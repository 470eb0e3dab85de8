"""Comparisons: the standings of engines on each question, and changes between runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from harness.errors import BadInput
from harness.results.environment import Environment, labels
from harness.results.labelling import judge_accuracy
from harness.results.summary import CellSummary
from harness.results.verdict import Judgement, Pair, Verdict, judge, judge_metric
from harness.spec.cell import Question
from harness.spec.metrics import ACCURACY, TIME, Metric, format_value
from harness.spec.quantiles import median, quartiles

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

    measured: CellSummary
    over_dense: float | None
    over_best: float | None


@dataclass(frozen=True)
class Change:
    """Change of one metric of one cell between two runs.

    Attributes
    ----------
    measured
        The summary after, or before where the cell has none after.
    before, after
        The metric in both runs.
    two_machines
        Whether the times are of two machines, and not judged.
    environment_changes
        Versions that differ between the runs, in words; without any, the names of environments.
    """

    measured: CellSummary
    metric: Metric
    before: float | None
    after: float | None
    judgement: Judgement
    two_machines: bool = False
    environment_changes: tuple[str, ...] = ()


def standings(cells: Iterable[CellSummary]) -> list[Standing]:
    """Rank the engines on every question that a run asked.

    Returns
    -------
    list[Standing]
        Question by question, ordered by size, batch, phase and map; within one, the quickest first
        and what has no time last.
    """
    ranked = []
    contests = [
        rivals
        for own in by_environment(cells).values()
        for rivals in sorted(_by_question(own), key=_question_order)
    ]
    for rivals in contests:
        times = {m.name: m.seconds for m in rivals if m.ok and m.seconds}
        dense = next(
            (times[m.name] for m in rivals if m.cell.backend == "dense" and m.name in times),
            None,
        )
        for m in sorted(rivals, key=lambda m: (times.get(m.name, math.inf), m.engine)):
            own = times.get(m.name)
            others = [
                times[o.name]
                for o in rivals
                if o.name in times and o.cell.backend != m.cell.backend
            ]
            ranked.append(
                Standing(
                    m,
                    dense / own if own and dense else None,
                    min(others) / own if own and others else None,
                )
            )
    return ranked


def by_environment(cells: Iterable[CellSummary]) -> dict[int, list[CellSummary]]:
    """Group summaries by machine, versions and commit, in order of appearance, without joining."""
    groups: dict[int, list[CellSummary]] = defaultdict(list)
    for measured in cells:
        groups[id(measured.environment)].append(measured)
    return groups


def machine_labels(cells: Iterable[CellSummary]) -> dict[int, str]:
    """Label the environments of some summaries by their ``id``; empty if there is only one."""
    found = [own[0].environment for own in by_environment(cells).values()]
    if len(found) < 2:
        return {}
    return {id(each): name for each, name in zip(found, labels(found), strict=True)}


def _by_question(cells: Iterable[CellSummary]) -> list[list[CellSummary]]:
    questions: dict[Question, list[CellSummary]] = defaultdict(list)
    for measured in cells:
        questions[measured.question].append(measured)
    return list(questions.values())


def _question_order(rivals: Sequence[CellSummary]) -> tuple[str | int, ...]:
    return rivals[0].question.order


def changes(
    before: Sequence[CellSummary], after: Sequence[CellSummary], relative: str = ""
) -> list[Change]:
    """Judge every cell of two runs, what matters most first.

    Times of two machines are shown side by side and never judged; their ratios to the times of a
    reference engine are.

    Parameters
    ----------
    before, after
        Summaries of the two runs.
    relative
        The reference engine; empty to judge the times themselves.

    Returns
    -------
    list[Change]
        Time, memory, error and accuracy of each cell, sorted by consequence and then by size of
        the change.

    Raises
    ------
    BadInput
        If a run measured a cell at two commits, or with two sets of versions, on one machine, or if
        it has no times of the reference engine.
    """
    time = TIME
    if relative:
        time = replace(TIME, name=f"time over {relative}", unit="×")
        before, after = relative_to(before, relative), relative_to(after, relative)
    _refuse_twins("before", before)
    _refuse_twins("after", after)
    couples = [
        (old, new) for old, new in _couples(before, after) if any(m and m.tried for m in (old, new))
    ]
    same = [(old, new) for old, new in couples if not _other_machine(old, new)]
    pairs = []
    for old, new in same:
        turns = bool(old and new and old.side.rounds.keys() & new.side.rounds.keys())
        pairs.append(Pair(old.side if old else None, new.side if new else None, turns))
    judged = iter(judge(pairs))
    several = len({m.environment.label for m in (*before, *after)}) > 1
    found = []
    for old, new in couples:
        shown = new or old
        assert shown is not None
        apart = _other_machine(old, new)
        judgement = Judgement(Verdict.UNCLEAR, apart) if apart else next(judged)
        if several and (old is None or new is None):
            reason = f"{judgement.reason} on {shown.environment.label}"
            judgement = replace(judgement, reason=reason)
        times = (old.seconds if old else None, new.seconds if new else None)
        newer = tuple(old.environment.changes(new.environment)) if old and new else ()
        found.append(Change(shown, time, *times, judgement, bool(apart), newer))
        if apart or old is None or new is None or not (old.ok and new.ok):
            continue
        for metric, was, now in (
            (new.memory_metric, old.memory, new.memory),
            (new.error_metric, old.error, new.error),
        ):
            if was is not None or now is not None:
                found.append(Change(new, metric, was, now, judge_metric(was, now, metric)))
        if old.labelling and new.labelling:
            accuracies = (old.labelling.nonzero, new.labelling.nonzero)
            judgement = judge_accuracy(old.labelling, new.labelling)
            found.append(Change(new, ACCURACY, *accuracies, judgement))
    return sorted(found, key=_consequence)


def not_judged(found: Iterable[Change]) -> list[str]:
    """Say which times were not judged because they are of two machines."""
    return list(
        dict.fromkeys(f"Not judged: {c.judgement.reason}." for c in found if c.two_machines)
    )


def _refuse_twins(which: str, cells: Sequence[CellSummary]) -> None:
    """Raise ``BadInput`` if a run has two times of one cell, between which nothing decides."""
    seen: dict[str, list[CellSummary]] = defaultdict(list)
    for m in cells:
        for twin in seen[m.name]:
            if not _other_machine(twin, m) and m.tried and twin.tried:
                apart = twin.environment.difference(m.environment)
                choices = twin.environment.choices(m.environment)
                advice = "name a commit or a file that has it once"
                if choices:
                    advice = f"append @{choices[0]} or @{choices[1]} to the name of the run"
                raise BadInput(
                    f"the run {which} has {m.cell.title} twice"
                    f"{f' ({apart})' if apart else ', of two machines'}; {advice}"
                )
        seen[m.name].append(m)


Couple = tuple[CellSummary | None, CellSummary | None]


def _couples(before: Sequence[CellSummary], after: Sequence[CellSummary]) -> list[Couple]:
    """Pair the summaries of each cell: those of one machine, preferably with the same versions."""
    names = dict.fromkeys(m.name for m in (*before, *after))
    old_of: dict[str, list[CellSummary]] = {name: [] for name in names}
    new_of: dict[str, list[CellSummary]] = {name: [] for name in names}
    for m in before:
        old_of[m.name].append(m)
    for m in after:
        new_of[m.name].append(m)
    couples: list[Couple] = []
    for name in names:
        left = list(old_of[name])
        for new in new_of[name]:
            old = max(left, key=partial(_likeness, new), default=None)
            if old is not None:
                left.remove(old)
            couples.append((old, new))
        couples += [(old, None) for old in left]
    return couples


def _likeness(new: CellSummary, old: CellSummary) -> tuple[bool, int]:
    """Whether two summaries are of one machine, and how few of their facts differ."""
    return not _other_machine(old, new), -len(old.environment.differing(new.environment))


def _other_machine(old: CellSummary | None, new: CellSummary | None) -> str:
    """Name the machines if two times are of two machines; empty otherwise."""
    if old is None or new is None or not (old.ok and new.ok):
        return ""
    one, other = old.environment.machine, new.environment.machine
    if one.agrees(other.facts):
        return ""
    return f"measured on two machines ({one.difference(other)}), whose times do not compare"


def relative_to(cells: Sequence[CellSummary], engine: str) -> list[CellSummary]:
    """Divide the times of each cell by those of a reference engine, round by round.

    The reference's times are of the same question, machine and round, so that ratios of two
    machines can be compared.

    Parameters
    ----------
    cells
        Summaries of a run.
    engine
        The reference, with its options if it has any.

    Returns
    -------
    list[CellSummary]
        The other engines' summaries whose reference has times; their ``seconds`` are ratios, and
        their environments name no machine.

    Raises
    ------
    BadInput
        If the run has no times of the reference.
    """
    found = []
    for own in by_environment(cells).values():
        code = own[0].environment.code
        for rivals in _by_question(own):
            reference = next((m for m in rivals if m.engine == engine and m.ok), None)
            if reference is not None:
                found += [_divided(m, reference, code) for m in rivals if m is not reference]
    if not found:
        raise BadInput(f"no other engine was measured beside {engine!r}, so there are no ratios")
    return found


def _divided(m: CellSummary, reference: CellSummary, code: Environment) -> CellSummary:
    assert reference.seconds is not None
    units = {name: median(samples) for name, samples in reference.side.rounds.items()}
    rounds = {
        name: [sample / units.get(name, reference.seconds) for sample in samples]
        for name, samples in m.side.rounds.items()
    }
    together = list(chain.from_iterable(rounds.values()))
    low, middle, high = quartiles(together) if together else (None, None, None)
    return replace(
        m,
        side=replace(m.side, rounds=rounds),
        seconds=middle,
        low=low,
        high=high,
        environment=code,
        memory=None,
    )


def _consequence(change: Change) -> tuple[int, float]:
    ratio = change.judgement.ratio
    size = abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else 0.0
    return change.judgement.verdict.rank, -size


@dataclass(frozen=True)
class Finding:
    """The finding of a run in a few sentences, and the question that they quote.

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
    quoted: list[CellSummary]


def finding(cells: Sequence[CellSummary]) -> Finding:
    """Rank the engines in words, on each machine by itself; numbers are quoted of the first."""
    found = list(by_environment(cells).values())
    said = [_finding(own) for own in found]
    if len(said) == 1:
        return said[0]
    names = labels([own[0].environment for own in found])
    ranked = [pair for pair in zip(names, said, strict=True) if pair[1].quoted]
    if not ranked:
        return said[0]
    claims = {one.claim for _, one in ranked}
    return Finding(
        f"{claims.pop()}, in each of {len(ranked)} environments"
        if len(ranked) > 1 == len(claims)
        else "; ".join(f"{name}: {one.claim}" for name, one in ranked),
        [f"{name}: {' '.join(one.sentences)}" for name, one in ranked],
        ranked[0][1].quoted,
    )


def _finding(cells: Sequence[CellSummary]) -> Finding:
    """Say which engine is quickest and which is smallest, by how much, and how surely.

    Numbers are quoted for the largest contest that the overall winner won; a forward pass with a
    cold kernel map before others, because that is what inference on new events costs.
    """
    machines = by_environment(m for m in cells if m.tried)
    contests = [sorted(r, key=_seconds) for own in machines.values() for r in _by_question(own)]
    contests = [r for r in contests if len(_rivals(r)) > 1]
    if not contests:
        claim = "No question was answered by two engines: there is nothing to rank."
        return Finding(claim, _precisions(cells), [])
    wins = Counter(rivals[0].cell.backend for rivals in contests)
    best, won = wins.most_common(1)[0]
    own = [rivals for rivals in contests if rivals[0].cell.backend == best]
    quoted = max(own, key=_weight)
    leads = sorted(_seconds(_rivals(r)[1]) / _seconds(r[0]) for r in own)
    sure = _race(*_rivals(quoted)[:2]).verdict is Verdict.SLOWER
    return Finding(
        f"{best} is the fastest engine here"
        if sure
        else f"{best} looks fastest here, but this run cannot settle it",
        [
            _record(best, won, len(contests), leads, wins),
            *_quote(quoted),
            *_lost(quoted, contests),
            *_precisions(cells),
        ],
        quoted,
    )


def _precisions(cells: Sequence[CellSummary]) -> list[str]:
    """Compare the accuracy of an engine at each precision with that at fp32, event by event."""
    usual = {
        (m.engine, replace(m.question, precision=""), id(m.environment)): m
        for m in cells
        if m.ok and m.cell.precision == "fp32"
    }
    sentences = []
    for m in cells:
        key = m.engine, replace(m.question, precision=""), id(m.environment)
        base = usual.get(key)
        if base is None or m is base or not (m.ok and m.labelling and base.labelling):
            continue
        found = judge_accuracy(base.labelling, m.labelling)
        sentences.append(
            f"{m.engine} in {m.cell.precision} takes {_seconds(m) / _seconds(base):.3g}x the time "
            f"of fp32 at {m.cell.size} px, batch {m.cell.batch}; its accuracy is {found.verdict}: "
            f"{found.reason}."
        )
    return sentences


def _seconds(measured: CellSummary) -> float:
    return measured.seconds if measured.ok and measured.seconds else math.inf


def _rivals(ordered: Sequence[CellSummary]) -> list[CellSummary]:
    """The quickest variant of each engine that has a time."""
    found: dict[str, CellSummary] = {}
    for measured in ordered:
        if _seconds(measured) < math.inf:
            found.setdefault(measured.cell.backend, measured)
    return list(found.values())


def _weight(rivals: Sequence[CellSummary]) -> tuple[Any, ...]:
    c = rivals[0].cell
    return c.phase == "forward", c.map == "cold", c.size, c.batch


def _record(best: str, won: int, contests: int, leads: Sequence[float], wins: Counter[str]) -> str:
    margin = f"{leads[0]:.3g}x" if len(leads) == 1 else f"{leads[0]:.3g}x to {leads[-1]:.3g}x"
    if contests == 1:
        return f"It is {margin} as fast as the next."
    others = ", ".join(f"{engine} {n}" for engine, n in wins.most_common() if engine != best)
    of = f"all {contests}" if won == contests else f"{won} of {contests}"
    return f"It wins {of} comparisons, by {margin} over the next" + (
        f"; {others}." if others else "."
    )


def _quote(quoted: Sequence[CellSummary]) -> list[str]:
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
    accuracy = _accuracy_sentence(_rivals(quoted))
    if accuracy:
        sentences.append(accuracy)
    weighed = sorted((m for m in _rivals(quoted) if m.memory), key=lambda m: m.memory or 0.0)
    if len(weighed) > 1:
        light, heavy = weighed[0], weighed[-1]
        sentences.append(
            f"The smallest there is {light.engine} with {format_value(light.memory, 'bytes')}; "
            f"{heavy.engine} needs {(heavy.memory or 0) / (light.memory or 1):.3g}x as much."
        )
    return sentences


def _accuracy_sentence(rivals: Sequence[CellSummary]) -> str:
    """The accuracy of the fastest engine's labels, and which engines label otherwise."""
    found = [(m, m.labelling) for m in rivals if m.labelling]
    if not found:
        return ""
    first, own = found[0]
    sentence = f"{first.engine} labels {own.text} of the voxels right"
    flips = [(m.engine, labelling.flips) for m, labelling in found if labelling.flips]
    if not flips:
        return sentence + ("; no engine's label differs from float64." if len(found) > 1 else ".")
    listed = ", ".join(f"{count:,} of {engine}" for engine, count in flips)
    return f"{sentence}; labels unlike those of float64: {listed}."


def _lost(quoted: Sequence[CellSummary], contests: Sequence[Sequence[CellSummary]]) -> list[str]:
    """Return sentences about the engines without a time in the quoted question."""
    sentences = []
    for lost in (m for m in quoted if not m.ok):
        elsewhere = [
            (m.cell.size, m.cell.batch, m, rivals[0])
            for rivals in contests
            for m in _rivals(rivals)
            if m.engine == lost.engine and m.cell.phase == lost.cell.phase
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


def _lead(first: CellSummary, second: CellSummary) -> str:
    """How much longer the second takes, and whether that is sure.

    The ratio is that of the turns, which the interval belongs to. Medians of all samples may differ
    from it on a disturbed machine, where one engine was sampled longer than the other.
    """
    found = _race(first, second)
    if math.isnan(found.low):
        return f"{_seconds(second) / _seconds(first):.3g}x as long ({found.reason})"
    ratio = found.ratio
    longer = f"{ratio:.3g}x as long, turn by turn"
    interval = f"95 % interval {found.low:.3g}x to {found.high:.3g}x"
    if found.verdict is Verdict.SLOWER:
        return f"{longer} ({interval})"
    return f"{longer}, which is not sure ({interval}; more repeats narrow it)"


def _race(first: CellSummary, second: CellSummary) -> Judgement:
    """Judge two engines of one run, which took turns, as if they were before and after."""
    return judge([Pair(first.side, second.side, took_turns=True)])[0]


@dataclass(frozen=True)
class Failure:
    """Cells of one engine that gave no time for the same reason."""

    engine: str
    outcome: str
    reason: str
    cells: list[CellSummary]

    @property
    def where(self) -> str:
        """Which cells; what could not even be tried is not worth a list."""
        if self.outcome == "unavailable":
            return "everywhere" if len(self.cells) > 1 else self.cells[0].where
        return "; ".join(m.where for m in self.cells)


def failures(cells: Iterable[CellSummary]) -> list[Failure]:
    """Group what gave no time by engine, outcome and reason; what is not installed comes last."""
    groups: dict[tuple[str, str, str], list[CellSummary]] = defaultdict(list)
    for m in cells:
        if not m.ok:
            groups[m.engine, m.side.outcome, m.side.reason].append(m)
    found = [Failure(*key, members) for key, members in groups.items()]
    return sorted(found, key=lambda f: f.outcome == "unavailable")


def tally(found: Iterable[Change]) -> str:
    """Count the verdicts, gravest first: ``1 SLOWER, 3 UNCLEAR, 20 SAME``."""
    counts = Counter(c.judgement.verdict for c in found)
    return ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v]) or "nothing to compare"


def headline(found: Sequence[Change]) -> str:
    """Return the environments that differ between two runs, and the counts of the verdicts."""
    changed = dict.fromkeys(words for c in found for words in c.environment_changes)
    return ": ".join(filter(None, (", ".join(changed), tally(found))))


def common_drift(found: Iterable[Change]) -> float | None:
    """Median ratio of the times of all cells, where it is beyond what matters and not one engine's.

    Engines that have nothing in common do not slow down together: then it was the machine.
    """
    by_engine: dict[str, list[float]] = defaultdict(list)
    for c in found:
        if c.metric is TIME and math.isfinite(c.judgement.ratio):
            by_engine[c.measured.cell.backend].append(math.log(c.judgement.ratio))
    if len(by_engine) < 3:
        return None
    shifts = sorted(sorted(r)[len(r) // 2] for r in by_engine.values())
    limit = math.log1p(TIME.tolerance)
    if shifts[0] > limit or shifts[-1] < -limit:
        return math.exp(shifts[len(shifts) // 2])
    return None


def disturbance(cells: Iterable[CellSummary]) -> str:
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
