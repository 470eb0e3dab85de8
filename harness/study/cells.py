"""The cells that the study's tables and figures of costs need, with their events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.errors import BadInput
from harness.events import EventSet, open_events
from harness.run.job import Job
from harness.spec.cell import Cell, EventSpec, ModelSpec
from harness.study import derived
from harness.study.scales import Costs
from harness.study.views import crop

EVENTS_KEPT = 16
"""Events in each derived file: enough for a batch of four of them to be drawn by a seed."""

TABLE, DENSE, PLANES = "study-table", "study-dense", "study-planes"
BATCHES, VOLUMES, OVERLAYS, FILLED = (
    "study-batches",
    "study-volumes",
    "study-overlays",
    "study-occupancy",
)
"""Suites: what a cell was measured for, as its record says."""


@dataclass(frozen=True)
class Engines:
    """Who is measured.

    Attributes
    ----------
    sparse : tuple of str
        Sparse engines, the study's own first.
    dense : tuple of str
        The dense network of the same function, and the dense one of 2018 where it is known.
    """

    sparse: tuple[str, ...]
    dense: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Events of cells: what a worker opens, and how the cell names it."""

    path: str
    spec: EventSpec


def cost_jobs(
    costs: Costs, engines: Engines, device: str, precision: str, model: ModelSpec, folder: Path
) -> list[Job]:
    """List what a scale measures, making the event files that it needs.

    Parameters
    ----------
    costs : Costs
    engines : Engines
    device, precision, model
        As for `harness.spec.cell.Cell`.
    folder : Path
        For the event files.
    """
    every = (*engines.sparse, *engines.dense)
    cells = _Cells(costs, device, precision, model)
    jobs = [
        *cells.make(TABLE, engines.sparse, costs.table, _sample),
        *cells.make(PLANES, every, costs.planes, _sample, dim=2),
        *cells.make(
            BATCHES, engines.sparse, [(costs.batch_size, n) for n in costs.batches], _sample
        ),
        *cells.make(
            VOLUMES,
            engines.sparse,
            [(size, 4) for size in costs.volumes],
            lambda size: _embedded(folder, size),
        ),
    ]
    for side, batch, phases in costs.dense:
        cut = partial(_crops, folder)
        jobs += cells.make(DENSE, every, [(side, batch)], cut, phases=phases)
    for count in costs.overlays:
        overlaid = partial(_overlaid, folder, count)
        jobs += cells.make(OVERLAYS, engines.sparse, [(costs.overlay_size, 1)], overlaid)
    for occupancy in costs.occupancies:
        filled = partial(_filled, folder, occupancy)
        both = (engines.sparse[0], engines.dense[0])
        jobs += cells.make(FILLED, both, [(costs.filled_side, 1)], filled)
    return list({job.cell.name: job for job in jobs}.values())


@dataclass(frozen=True)
class _Cells:
    costs: Costs
    device: str
    precision: str
    model: ModelSpec

    def make(
        self,
        suite: str,
        engines: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        source: Callable[[int], Source],
        dim: int = 3,
        phases: tuple[str, ...] = (),
    ) -> Iterator[Job]:
        """Yield a job for each shape, phase and engine."""
        for size, batch in shapes:
            events = source(size)
            for phase in phases or self.costs.phases:
                for engine in engines:
                    cell = Cell(
                        suite=suite,
                        backend=engine,
                        size=size,
                        batch=batch,
                        phase=phase,
                        map="cold",
                        device=self.device,
                        precision=self.precision,
                        dim=dim,
                        model=self.model,
                        events=events.spec,
                    )
                    checked = batch <= self.costs.checked_events
                    yield Job(
                        cell,
                        events.path,
                        self.costs.rule,
                        warm_up=self.costs.warm_up,
                        check=checked,
                    )


def _sample(size: int) -> Source:
    return Source("sample", EventSpec("sample", open_events("sample", size=size).sha256))


def _file(path: Path) -> Source:
    return Source(str(path), EventSpec(path.name, open_events(path).sha256))


def _smallest() -> EventSet:
    return open_events("sample", size=192)[:EVENTS_KEPT]


def _crops(folder: Path, side: int) -> Source:
    """Cubes cut out of sample events; the whole events at their own size."""
    if side == 192:
        return _sample(side)
    cut = (crop(event, side, i) for i, event in enumerate(_smallest()))
    return _file(derived.write(folder / f"crops-{side}px.h5", cut, "sample events, cut"))


def _embedded(folder: Path, size: int) -> Source:
    """The same events of 192 px in volumes of any size."""
    whole = (derived.embed(event, size) for event in _smallest())
    return _file(derived.write(folder / f"embedded-{size}px.h5", whole, "sample events, embedded"))


def _overlaid(folder: Path, count: int, size: int) -> Source:
    """One event that is several on top of one another."""
    events = open_events("sample", size=size)
    if count > len(events):
        raise BadInput(f"the sample has {len(events)} events of {size} px, fewer than {count}")
    made = [derived.overlay(list(events[:count]))]
    path = folder / f"overlaid-{size}px-{count:02d}.h5"
    return _file(derived.write(path, made, "sample events, overlaid"))


def _filled(folder: Path, occupancy: float, side: int) -> Source:
    """One cube of which a given fraction is active."""
    cubes = [crop(event, side, i) for i, event in enumerate(_smallest())]
    name = f"filled-{side}px-{occupancy:g}.h5"
    made = [derived.fill(cubes, occupancy)]
    return _file(derived.write(folder / name, made, f"sample events, {occupancy:g} active"))
