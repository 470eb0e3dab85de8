"""Tables of the page: accuracies, Michel electrons and costs, measured beside published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from harness.accuracy import classification
from harness.events.classes import CLASS_NAMES
from harness.results.summary import CellSummary
from harness.study import published
from harness.study.results import Curve, Evaluation


def training_table(curves: Iterable[Curve]) -> pd.DataFrame:
    """Return the extent, the optimiser and the duration of each training."""
    return pd.DataFrame(
        [
            {
                "training": c.training.name,
                "engine": c.backend,
                "steps": len(c.steps),
                "batch": c.training.batch,
                "events": c.events,
                "time [s]": c.seconds,
                "median step [s]": float(c.steps["step_seconds"].median()),
                "energy [J]": float(c.steps["joules"].iloc[-1]) if c.has_energy else None,
                "optimiser": c.training.optimiser.title(),
                "learning rate": c.training.learning_rate,
                "final accuracy": float(c.smooth["accuracy"].iloc[-1]),
            }
            for c in curves
        ]
    )


def accuracy_table(tests: Iterable[Evaluation]) -> pd.DataFrame:
    """Return the nonzero accuracy on held-out events, one row per test."""
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


def class_table(tests: Iterable[Evaluation]) -> pd.DataFrame:
    """Return accuracy, purity and intersection over union, one row per test and class."""
    rows = []
    for t in tests:
        matrix = t.accuracy.confusion
        for i, name in enumerate(CLASS_NAMES[t.training.classes]):
            rows.append(
                {
                    "test": t.title,
                    "class": name,
                    "voxels": int(matrix[i].sum()),
                    "accuracy": classification.class_accuracy(matrix)[i],
                    "purity": classification.class_purity(matrix)[i],
                    "IoU": classification.intersection_over_union(matrix)[i],
                }
            )
    return pd.DataFrame(rows)


def confusion_table(test: Evaluation) -> pd.DataFrame:
    """Return the fraction of each true class (row) that is predicted as each class (column)."""
    matrix = test.accuracy.confusion
    names = CLASS_NAMES[test.training.classes]
    with np.errstate(invalid="ignore"):
        shares = matrix / matrix.sum(axis=1, keepdims=True)
    return pd.DataFrame(shares, index=pd.Index(names, name="true class"), columns=list(names))


def michel_table(tests: Iterable[Evaluation]) -> pd.DataFrame:
    """Return Michel electrons beside the published numbers, one row per test."""
    rows: list[dict[str, object]] = [{"test": "2018 study", **published.MICHEL}]
    rows += [{"test": t.title, **vars(t.michel_summary)} for t in tests]
    columns = ["test", "true_clusters", "found", "candidates", "matched", *published.MICHEL]
    table = pd.DataFrame(rows, columns=columns)
    return table.rename(columns=lambda name: str(name).replace("_", " "))


def total_memory(frame: pd.DataFrame, device: str) -> dict[str, float]:
    """Return the memory of each cell in the definition of the 2018 study.

    On a GPU, this is the maximum that torch allocates; on a CPU, the peak resident memory of the
    process, including the interpreter and torch. All other tables and figures of the page contain
    the additional memory of a call.

    Parameters
    ----------
    frame : DataFrame
        Records, as ``harness.results.store.read`` returns them.
    device : str
        ``cpu`` or ``cuda``.

    Returns
    -------
    dict of str to float
        Name of a cell -> bytes.
    """
    column = "memory.torch_allocated_bytes" if device == "cuda" else "memory.peak_rss_bytes"
    if column not in frame.columns:
        return {}
    present = frame.dropna(subset=[column])
    return dict(zip(present["cell.name"], present[column].astype(float), strict=True))


def cost_table(
    cells: Sequence[CellSummary], memory: Mapping[str, float], device: str
) -> pd.DataFrame:
    """Return Table II: published and measured values, and their ratio.

    Parameters
    ----------
    cells : sequence of CellSummary
        Cells of the suite of the table.
    memory : mapping
        As ``total_memory`` returns it.
    device : str
        Device of the published numbers: a V100 for ``cuda``, a Xeon Silver 4110 for ``cpu``.
    """
    rows = []
    for m in cells:
        c = m.cell
        for quantity, value in (("time", m.seconds), ("memory", memory.get(m.name))):
            reference = published.published("sparse", device, c.size, c.batch, c.phase, quantity)
            rows.append(
                {
                    "engine": m.engine,
                    "size [px]": c.size,
                    "batch": c.batch,
                    "pass": "test" if c.phase == "forward" else "train",
                    "quantity": quantity,
                    "unit": "s" if quantity == "time" else "bytes",
                    "published": reference,
                    "measured": value if m.ok else None,
                    "published over measured": _ratio(reference, value) if m.ok else None,
                    "outcome": m.side.outcome,
                    "checked": m.error is not None,
                }
            )
    return pd.DataFrame(rows)


def factor_table(cells: Sequence[CellSummary], sparse: str) -> pd.DataFrame:
    """Return the ratio of the costs of dense and sparse on the same events.

    Parameters
    ----------
    cells : sequence of CellSummary
        Cells of dense and sparse engines.
    sparse : str
        Sparse engine of the denominator.

    Returns
    -------
    DataFrame
        One row per dense engine and configuration.
    """
    rows = []
    for m in cells:
        if not m.cell.backend.startswith("dense"):
            continue
        twin = next((o for o in cells if o.engine == sparse and o.question == m.question), None)
        both = m.ok and twin is not None and twin.ok
        c = m.cell
        rows.append(
            {
                "dense engine": m.engine,
                "dim": c.dim,
                "size [px]": c.size,
                "batch": c.batch,
                "pass": "test" if c.phase == "forward" else "train",
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
    """Return the ratio of two measurements; None if one is missing or not positive."""
    return above / below if above and below and above > 0 and below > 0 else None
