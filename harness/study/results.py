"""Reads a study's folder: learning curves, tests, Michel electrons, and what cells cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from harness.results import store
from harness.results.summary import Measured, pool
from harness.study import accuracy, fits, michel, predictions, published
from harness.study.accuracy import Accuracy
from harness.study.cells import BATCHES, FILLED, OVERLAYS, TABLE, VOLUMES
from harness.study.fits import PowerLaw
from harness.study.michel import EventMichels, MichelSummary
from harness.study.parts import Study, predictions_name
from harness.study.predictions import Predicted
from harness.study.scales import BOTH, HeldOut, Scale, Training
from harness.study.views import CLASS_NAMES

SMOOTHED = 100
"""Steps of the moving mean in the figures of training curves."""


@dataclass(frozen=True)
class Curve:
    """How one training went.

    Attributes
    ----------
    training : Training
    backend : str
    steps, held_out : DataFrame
        The training's CSV files.
    """

    training: Training
    backend: str
    steps: pd.DataFrame
    held_out: pd.DataFrame

    @cached_property
    def smooth(self) -> pd.DataFrame:
        """Means over the last `SMOOTHED` steps (fewer at the start)."""
        return self.steps.rolling(SMOOTHED, min_periods=1).mean()

    @property
    def events(self) -> int:
        """Events seen so far, repeated ones counted again."""
        return int(self.steps["events"].iloc[-1])

    @property
    def counted_joules(self) -> bool:
        """Whether the machine counted energy."""
        return bool(self.steps["joules"].notna().all())


@dataclass(frozen=True)
class Evaluated:
    """A trained network on held-out events."""

    training: Training
    test: HeldOut
    events: list[Predicted]

    @cached_property
    def accuracy(self) -> Accuracy:
        """How well the voxels are classified."""
        return accuracy.summarise(
            [e.truth for e in self.events],
            [e.predicted for e in self.events],
            self.training.classes,
        )

    @cached_property
    def michels(self) -> list[EventMichels]:
        """The Michel electrons of every event."""
        return [
            michel.reconstruct(e.event.voxels, e.event.energies, e.truth, e.predicted)
            for e in self.events
        ]

    @cached_property
    def michel_summary(self) -> MichelSummary:
        """The study's four numbers."""
        return michel.summarise(self.michels)

    @property
    def title(self) -> str:
        """What was tested on what."""
        kind = "Michel-rich" if self.test.michel else "sample"
        size = self.training.crop or self.test.size
        return f"{self.training.name} on {len(self.accuracy.events)} {kind} events of {size} px"


@dataclass(frozen=True)
class Results:
    """Everything that a study's folder holds."""

    study: Study
    curves: list[Curve]
    tests: list[Evaluated]
    cells: list[Measured]
    frame: pd.DataFrame

    @property
    def scale(self) -> Scale:
        """The study's scale."""
        return self.study.plan_of_work

    def of(self, suite: str) -> list[Measured]:
        """Return the cells that were measured for one purpose."""
        return [cell for cell in self.cells if cell.cell["suite"] == suite]


def read(study: Study) -> Results:
    """Read a study's folder, whatever it holds so far."""
    scale = study.plan_of_work
    curves, tests = [], []
    for training in scale.trainings:
        folder = study.training_folder(training)
        if (folder / "steps.csv").exists():
            steps = pd.read_csv(folder / "steps.csv")
            if len(steps):
                held_out = pd.read_csv(folder / "held_out.csv")
                curves.append(Curve(training, study.backend_of(training), steps, held_out))
        for test in training.tests:
            path = folder / f"{predictions_name(test)}.npz"
            if path.exists():
                events = study.test_view(training, test).open()[: test.events]
                tests.append(Evaluated(training, test, list(predictions.load(path, events))))
    frame = store.read([study.records] if study.records.exists() else [])
    measured = pool(frame[frame["cell.suite"].str.startswith("study-")]) if len(frame) else {}
    return Results(study, curves, tests, list(measured.values()), frame)


def accuracy_table(tests: Iterable[Evaluated]) -> pd.DataFrame:
    """Nonzero accuracy on held-out events, a row a test."""
    return pd.DataFrame(
        [
            {
                "training": t.training.name,
                "test size [px]": t.training.crop or t.test.size,
                "Michel-rich": t.test.michel,
                "events": len(t.accuracy.events),
                "nonzero accuracy": t.accuracy.mean,
                "spread over events": t.accuracy.std,
                "error of the mean": t.accuracy.standard_error,
            }
            for t in tests
        ]
    )


def class_table(tests: Iterable[Evaluated]) -> pd.DataFrame:
    """Accuracy, purity and intersection over union of each class, a row a test and class."""
    rows = []
    for t in tests:
        matrix = t.accuracy.confusion
        for i, name in enumerate(CLASS_NAMES[t.training.classes]):
            rows.append(
                {
                    "test": t.title,
                    "class": name,
                    "voxels": int(matrix[i].sum()),
                    "accuracy": accuracy.class_accuracy(matrix)[i],
                    "purity": accuracy.class_purity(matrix)[i],
                    "IoU": accuracy.intersection_over_union(matrix)[i],
                }
            )
    return pd.DataFrame(rows)


def confusion_table(test: Evaluated) -> pd.DataFrame:
    """Share of each true class (row) that is predicted as each class (column)."""
    matrix = test.accuracy.confusion
    names = CLASS_NAMES[test.training.classes]
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(axis=1, keepdims=True)
    return pd.DataFrame(shares, index=pd.Index(names, name="true class"), columns=list(names))


def michel_table(tests: Iterable[Evaluated]) -> pd.DataFrame:
    """Michel electrons beside the study's numbers, a row a test."""
    rows: list[dict[str, object]] = [{"test": "2018 study", **published.MICHEL}]
    rows += [{"test": t.title, **vars(t.michel_summary)} for t in tests]
    columns = ["test", "true_clusters", "found", "candidates", "matched", *published.MICHEL]
    table = pd.DataFrame(rows, columns=columns)
    return table.rename(columns=lambda name: str(name).replace("_", " "))


def whole_memory(frame: pd.DataFrame, device: str) -> dict[str, float]:
    """Return the memory of each cell as the study logged it.

    On a GPU that is torch's allocated maximum; on a processor all that the process held, the
    interpreter and torch included. Everywhere else on the page memory is what a call adds.

    Parameters
    ----------
    frame : DataFrame
        Records, as `harness.results.store.read` gives them.
    device : str
        ``cpu`` or ``cuda``.

    Returns
    -------
    dict of str to float
        Bytes by the cell's name.
    """
    column = "memory.torch_allocated_bytes" if device == "cuda" else "memory.peak_rss_bytes"
    if column not in frame.columns:
        return {}
    known = frame.dropna(subset=[column])
    return dict(zip(known["cell.name"], known[column].astype(float), strict=True))


def cost_table(cells: Sequence[Measured], memory: Mapping[str, float], device: str) -> pd.DataFrame:
    """Table II: published beside measured, and how many times less this machine takes.

    Parameters
    ----------
    cells : sequence of Measured
        Of the table's suite.
    memory : mapping
        As `whole_memory` returns it.
    device : str
        Whose published numbers: a V100's for ``cuda``, a Xeon 4110's for ``cpu``.
    """
    rows = []
    for m in cells:
        c = m.cell
        for quantity, value in (("time", m.seconds), ("memory", memory.get(m.name))):
            known = published.published(
                "sparse", device, c["size"], c["batch"], c["phase"], quantity
            )
            rows.append(
                {
                    "engine": m.engine,
                    "size [px]": c["size"],
                    "batch": c["batch"],
                    "pass": "test" if c["phase"] == "forward" else "train",
                    "quantity": quantity,
                    "unit": "s" if quantity == "time" else "bytes",
                    "published": known,
                    "measured": value if m.ok else None,
                    "published over measured": known / value if known and value and m.ok else None,
                    "outcome": m.side.outcome,
                    "checked": m.error is not None,
                }
            )
    return pd.DataFrame(rows)


def factor_table(cells: Sequence[Measured], sparse: str) -> pd.DataFrame:
    """How many times more dense costs than sparse, on the same events, a row a configuration.

    Parameters
    ----------
    cells : sequence of Measured
        Dense and sparse on the same events.
    sparse : str
        The sparse engine to divide by.
    """
    rows = []
    for m in cells:
        if not m.cell["backend"].startswith("dense"):
            continue
        twin = next((o for o in cells if o.engine == sparse and o.question == m.question), None)
        both = m.ok and twin is not None and twin.ok
        c = m.cell
        rows.append(
            {
                "dense engine": m.engine,
                "dim": c["dim"],
                "size [px]": c["size"],
                "batch": c["batch"],
                "pass": "test" if c["phase"] == "forward" else "train",
                "outcome": m.side.outcome,
                "dense time [s]": m.seconds if m.ok else None,
                "sparse time [s]": twin.seconds if twin is not None and twin.ok else None,
                "time factor": _ratio(m.seconds, twin.seconds) if both and twin else None,
                "dense memory [bytes]": m.memory if m.ok else None,
                "sparse memory [bytes]": twin.memory if twin is not None and twin.ok else None,
                "memory factor": _ratio(m.memory, twin.memory) if both and twin else None,
            }
        )
    return pd.DataFrame(rows)


def _ratio(above: float | None, below: float | None) -> float | None:
    """Divide two measurements; None where one is missing or too small to have been seen."""
    return above / below if above and below and above > 0 and below > 0 else None


@dataclass(frozen=True)
class Sweep:
    """One quantity varied with all else held fixed.

    Attributes
    ----------
    name : str
        File stem.
    along : str
        What varies, for the axis.
    held : str
        What is held fixed.
    table : DataFrame
        Columns ``x``, ``sites``, ``engine``, ``phase``, ``seconds``, ``bytes``, ``outcome``.
    """

    name: str
    along: str
    held: str
    table: pd.DataFrame

    def fit(self, engine: str, phase: str, quantity: str) -> PowerLaw | None:
        """Fit a power law to one curve, its smallest values included."""
        own = self.table[(self.table["engine"] == engine) & (self.table["phase"] == phase)]
        own = own.dropna(subset=[quantity])
        return fits.power_law(own["x"].tolist(), own[quantity].tolist())

    @property
    def engines(self) -> list[str]:
        """Engines in order of appearance."""
        return list(dict.fromkeys(self.table["engine"]))

    def fit_table(self) -> pd.DataFrame:
        """All fitted exponents with their 95 % intervals."""
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


def sweeps(results: Results) -> list[Sweep]:
    """Return the sweeps that have at least two points."""
    costs = results.scale.costs
    made = [
        Sweep(
            "time-and-memory-against-batch",
            "events a batch",
            f"{costs.batch_size} px",
            _points(
                [
                    m
                    for m in (*results.of(BATCHES), *results.of(TABLE))
                    if m.cell["size"] == costs.batch_size
                ],
                lambda m: m.cell["batch"],
            ),
        ),
        Sweep(
            "time-and-memory-against-volume",
            "voxels a side",
            "the same 4 events put into larger volumes",
            _points(results.of(VOLUMES), lambda m: m.cell["size"]),
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


def _points(cells: Sequence[Measured], along: Callable[[Measured], float]) -> pd.DataFrame:
    rows = [
        {
            "x": along(m),
            "sites": m.sites,
            "engine": m.engine,
            "phase": m.cell["phase"],
            "seconds": m.seconds if m.ok else None,
            "bytes": m.memory if m.ok and m.memory and m.memory > 0 else None,
            "outcome": m.side.outcome,
        }
        for m in cells
    ]
    columns = ["x", "sites", "engine", "phase", "seconds", "bytes", "outcome"]
    return pd.DataFrame(rows, columns=columns).sort_values(["engine", "phase", "x"])


@dataclass(frozen=True)
class Overtaking:
    """Where dense becomes quicker than sparse.

    Attributes
    ----------
    at : float or None
        Active fraction; None if sparse stays the quicker one.
    from_the_start : bool
        Whether dense is the quicker one already there, at the least fraction measured.
    """

    at: float | None
    from_the_start: bool = False


def overtaking(sweep: Sweep, sparse: str, dense: str, phase: str) -> Overtaking | None:
    """Find the active fraction at which dense becomes the quicker one.

    Returns
    -------
    Overtaking or None
        None where one of the two was not measured.
    """
    both = sweep.table[sweep.table["phase"] == phase].pivot_table(
        index="x", columns="engine", values="seconds"
    )
    if not {sparse, dense} <= set(both.columns):
        return None
    both = both.dropna(subset=[sparse, dense]).sort_index()
    if both.empty:
        return None
    x, slow, quick = both.index.tolist(), both[sparse].tolist(), both[dense].tolist()
    if slow[0] > quick[0]:
        return Overtaking(x[0], True)
    return Overtaking(fits.crossing(x, slow, quick))


def reached(curve: Curve, seconds: float) -> pd.Series | None:
    """Return the last evaluation within some training time, or None."""
    early = curve.held_out[curve.held_out["seconds"] <= seconds]
    return None if early.empty else early.iloc[-1]
