"""The cells of the cost tables and figures of a study, with their events."""

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
"""Events per derived file, from which a seed draws batches of four."""

TABLE, DENSE, PLANES = "study-table", "study-dense", "study-planes"
BATCHES, VOLUMES, OVERLAYS, FILLED = (
    "study-batches",
    "study-volumes",
    "study-overlays",
    "study-occupancy",
)
"""Suites of the cells, one per table or figure."""


@dataclass(frozen=True)
class Engines:
    """Engines whose costs are measured.

    Attributes
    ----------
    sparse : tuple of str
        Sparse engines, first the one that is trained.
    dense : tuple of str
        The dense network of the same function, and the dense network of 2018 if it is registered.
    """

    sparse: tuple[str, ...]
    dense: tuple[str, ...]


@dataclass(frozen=True)
class EventSource:
    """Events of cells: the path that a worker opens, and their specification in the cell."""

    path: str
    spec: EventSpec


def cost_jobs(
    costs: Costs, engines: Engines, device: str, precision: str, model: ModelSpec, folder: Path
) -> list[Job]:
    """Return the jobs of a scale; missing files of derived events are written.

    Parameters
    ----------
    costs : Costs
        Cells of the scale.
    engines : Engines
        Engines to measure.
    device, precision, model
        As for ``harness.spec.cell.Cell``.
    folder : Path
        Folder of the derived events.
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
        source: Callable[[int], EventSource],
        dim: int = 3,
        phases: tuple[str, ...] = (),
    ) -> Iterator[Job]:
        """Yield a job per shape, phase and engine."""
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


def _sample(size: int) -> EventSource:
    return EventSource("sample", EventSpec("sample", open_events("sample", size=size).sha256))


def _file(path: Path) -> EventSource:
    return EventSource(str(path), EventSpec(path.name, open_events(path).sha256))


def _smallest() -> EventSet:
    return open_events("sample", size=192)[:EVENTS_KEPT]


def _crops(folder: Path, side: int) -> EventSource:
    """Return cubes cut out of sample events; at 192 px, the whole events."""
    if side == 192:
        return _sample(side)
    cut = (crop(event, side, i) for i, event in enumerate(_smallest()))
    return _file(derived.write_once(folder / f"crops-{side}px.h5", cut, "sample events, cut"))


def _embedded(folder: Path, size: int) -> EventSource:
    """Return the same events of 192 px in a larger volume."""
    events = (derived.embed(event, size) for event in _smallest())
    return _file(
        derived.write_once(folder / f"embedded-{size}px.h5", events, "sample events, embedded")
    )


def _overlaid(folder: Path, count: int, size: int) -> EventSource:
    """Return several events overlaid to one."""
    events = open_events("sample", size=size)
    if count > len(events):
        raise BadInput(f"the sample has {len(events)} events of {size} px, fewer than {count}")
    made = [derived.overlay(list(events[:count]))]
    path = folder / f"overlaid-{size}px-{count:02d}.h5"
    return _file(derived.write_once(path, made, "sample events, overlaid"))


def _filled(folder: Path, occupancy: float, side: int) -> EventSource:
    """Return one cube with a given active fraction."""
    cubes = [crop(event, side, i) for i, event in enumerate(_smallest())]
    name = f"filled-{side}px-{occupancy:g}.h5"
    made = [derived.fill(cubes, occupancy)]
    return _file(derived.write_once(folder / name, made, f"sample events, {occupancy:g} active"))
