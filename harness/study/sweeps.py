"""Measurements in which one quantity varies: power laws, and the crossover of dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.results.summary import CellSummary
from harness.study import fits
from harness.study.cells import BATCHES, FILLED, OVERLAYS, TABLE, VOLUMES
from harness.study.fits import PowerLaw
from harness.study.results import Results
from harness.study.scales import BOTH


@dataclass(frozen=True)
class Sweep:
    """Measurements in which one quantity varies.

    Attributes
    ----------
    name : str
        Stem of the files.
    along : str
        Varied quantity, as the label of the axis.
    fixed : str
        Fixed quantities in words.
    table : DataFrame
        Columns ``x``, ``sites``, ``engine``, ``phase``, ``seconds``, ``bytes``, ``outcome``.
    """

    name: str
    along: str
    fixed: str
    table: pd.DataFrame

    def fit(self, engine: str, phase: str, quantity: str) -> PowerLaw | None:
        """Fit a power law to the curve of an engine and a phase; None for too few points."""
        own = self.table[(self.table["engine"] == engine) & (self.table["phase"] == phase)]
        own = own.dropna(subset=[quantity])
        return fits.power_law(own["x"].tolist(), own[quantity].tolist())

    @property
    def engines(self) -> list[str]:
        """Engines in order of appearance."""
        return list(dict.fromkeys(self.table["engine"]))

    def fit_table(self) -> pd.DataFrame:
        """Return all fitted exponents with their 95 % confidence intervals."""
        rows = []
        for engine in self.engines:
            for phase in BOTH:
                for quantity in ("seconds", "bytes"):
                    law = self.fit(engine, phase, quantity)
                    if law is not None:
                        rows.append(
                            {
                                "engine": engine,
                                "pass": phase,
                                "quantity": quantity,
                                "exponent": law.exponent,
                                "low": law.low,
                                "high": law.high,
                                "points": law.points,
                            }
                        )
        return pd.DataFrame(rows)


def sweeps_of(results: Results) -> list[Sweep]:
    """Return the sweeps that have at least two points."""
    costs = results.scale.costs
    made = [
        Sweep(
            "time-and-memory-against-batch",
            "events per batch",
            f"{costs.batch_size} px",
            _points(
                [
                    m
                    for m in (*results.of(BATCHES), *results.of(TABLE))
                    if m.cell.size == costs.batch_size
                ],
                lambda m: m.cell.batch,
            ),
        ),
        Sweep(
            "time-and-memory-against-volume",
            "voxels per side",
            "the same 4 events in larger volumes",
            _points(results.of(VOLUMES), lambda m: m.cell.size),
        ),
        Sweep(
            "time-and-memory-against-sites",
            "active sites",
            f"one volume of {costs.overlay_size} px, events overlaid",
            _points(results.of(OVERLAYS), lambda m: m.sites or 0),
        ),
        Sweep(
            "dense-against-sparse-by-occupancy",
            "active fraction",
            f"one cube of {costs.filled_side} px",
            _points(results.of(FILLED), lambda m: (m.sites or 0) / costs.filled_side**3),
        ),
    ]
    return [sweep for sweep in made if sweep.table["x"].nunique() > 1]


def _points(cells: Sequence[CellSummary], along: Callable[[CellSummary], float]) -> pd.DataFrame:
    rows = [
        {
            "x": along(m),
            "sites": m.sites,
            "engine": m.engine,
            "phase": m.cell.phase,
            "seconds": m.seconds if m.ok else None,
            "bytes": m.memory if m.ok and m.memory and m.memory > 0 else None,
            "outcome": m.side.outcome,
        }
        for m in cells
    ]
    columns = ["x", "sites", "engine", "phase", "seconds", "bytes", "outcome"]
    return pd.DataFrame(rows, columns=columns).sort_values(["engine", "phase", "x"])


@dataclass(frozen=True)
class Crossover:
    """Active fraction from which dense is faster than sparse.

    Attributes
    ----------
    at : float or None
        Active fraction; None if sparse is always faster.
    from_the_start : bool
        Whether dense is faster already at the least measured fraction.
    """

    at: float | None
    from_the_start: bool = False


def find_crossover(sweep: Sweep, sparse: str, dense: str, phase: str) -> Crossover | None:
    """Return the active fraction from which dense is faster than sparse.

    Returns
    -------
    Crossover or None
        None if one of the two was not measured.
    """
    both = sweep.table[sweep.table["phase"] == phase].pivot_table(
        index="x", columns="engine", values="seconds"
    )
    if not {sparse, dense} <= set(both.columns):
        return None
    both = both.dropna(subset=[sparse, dense]).sort_index()
    if both.empty:
        return None
    x, times_sparse, times_dense = both.index.tolist(), both[sparse].tolist(), both[dense].tolist()
    if times_sparse[0] > times_dense[0]:
        return Crossover(x[0], True)
    return Crossover(fits.crossing(x, times_sparse, times_dense))
