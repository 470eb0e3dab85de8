"""The interface for notebooks and scripts: measure, load, compare, open events, label, draw.

Everything here is a name of ``harness`` itself: ``import harness; harness.measure("demo")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import BadInput
from harness.events.child_reader import open_in_child
from harness.events.event import Event
from harness.events.event_set import EventSet
from harness.spec.cell import TRAINED
from harness.terminal import silence

if TYPE_CHECKING:
    import pandas as pd

    from harness.events.predictions import Labels, Probabilities


def measure(
    suite: str,
    *,
    engines: Sequence[str] = (),
    sizes: Sequence[int] = (),
    batches: Sequence[int] = (),
    device: str | None = None,
    precision: str = "",
    events: str = "sample",
    weights: str = TRAINED,
    repeats: int = 1,
    budget: float | None = None,
    against: str | None = None,
    against_env: str | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
) -> Path:
    """Measure a suite, as ``python -m harness run`` does.

    Parameters
    ----------
    suite : str
        As ``python -m harness suites`` lists them.
    engines : sequence of str
        ``NAME`` or ``NAME:OPTION=VALUE``; those of the suite if empty.
    sizes, batches : sequence of int
        Voxels per side and events per call; those of the suite if empty.
    device : str, optional
        ``cpu`` or ``cuda``; by default cuda where an engine has it.
    precision : str
        ``fp64``, ``fp32``, ``tf32``, ``fp16`` or ``bf16``; that of the suite if empty.
    events : str
        ``sample`` or a file of events.
    weights : str
        ``trained``, ``random``, or a file of weights.
    repeats : int
        Rounds, each in new processes.
    budget : float, optional
        Longest time of sampling per cell and round, in seconds; that of the suite by default.
    against : str, optional
        A commit to measure in turns with this code.
    against_env : str, optional
        An installed engine ``NAME@VERSION``, or the path of a Python, to measure in turns with this
        environment.
    out : str or Path, optional
        File of records; by default a new one under ``results/runs``.
    quiet : bool
        Whether to print no progress.

    Returns
    -------
    Path
        The file of records, for ``load_records`` and ``compare_runs``.

    Raises
    ------
    BadInput
        If an argument has no meaning or an engine cannot run here.
    """
    from harness.run.command import run

    with silence() if quiet else nullcontext():
        outs = run(
            suite,
            backend=list(engines) or None,
            size=list(sizes) or None,
            batch=list(batches) or None,
            device=device,
            precision=precision,
            events=events,
            weights=weights,
            repeats=repeats,
            budget=budget,
            against=against,
            against_env=against_env,
            out=None if out is None else Path(out),
        )
    return outs[0]


def load_records(run: str | Path = "latest") -> pd.DataFrame:
    """Load the records of a run.

    Parameters
    ----------
    run : str or Path
        A file of records, a commit, ``latest`` or ``baseline``; ``RUN@ENVIRONMENT`` for the records
        of one environment.

    Returns
    -------
    DataFrame
        One row per record; the columns are the fields of ``docs/records.md``, nested ones with
        dots: ``cell.size``, ``error.rel_rmse``.

    Raises
    ------
    BadInput
        If there is no such run.
    """
    from harness.results.store import load

    return load(str(run))


def compare_runs(run: str | Path = "latest", after: str | Path | None = None) -> pd.DataFrame:
    """Compare the engines of a run, or two runs, as ``python -m harness compare`` does.

    Parameters
    ----------
    run : str or Path
        As for ``load_records``. A run that was measured against a commit or an environment is
        compared with it.
    after : str or Path, optional
        The run after it.

    Returns
    -------
    DataFrame
        Of one run, a row per engine and question, the fastest first: medians in seconds, memory in
        bytes, errors, accuracies. Of two runs, a row per cell and metric with the verdict.

    Raises
    ------
    BadInput
        If there is no such run, or it holds no valid record.
    """
    import pandas as pd

    from harness.compare.command import load_sides
    from harness.compare.comparison import changes, standings
    from harness.compare.rows import change_rows, standing_rows
    from harness.results.summary import summarize

    before, now = load_sides(str(run), None if after is None else str(after))
    cells = summarize(now)
    if not cells:
        raise BadInput(f"{after or run} holds no valid record; measure one with harness.measure")
    if before is None:
        return pd.DataFrame(standing_rows(s for s in standings(cells) if s.measured.tried))
    return pd.DataFrame(change_rows(changes(summarize(before), cells)))


def open_events(source: str | Path = "sample", size: int | None = None) -> EventSet:
    """Open a set of events, which are read on access.

    Parameters
    ----------
    source : str or Path
        ``sample`` or a file in any of the formats that ``python -m harness events`` reads.
    size : int, optional
        Voxels per side: 192, 512 or 768 for ``sample``; elsewhere only to check.

    Returns
    -------
    EventSet
        A sequence of ``harness.events.Event``: ``voxels`` (N, 3), ``energies`` (N,) in MeV,
        ``labels`` (N,).

    Raises
    ------
    BadInput
        If the file cannot be read.
    """
    return open_in_child(source, size=size)


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one event.

    Attributes
    ----------
    labels : ndarray of uint8, shape (N,)
        Class of each voxel, as ``harness.events.Label`` numbers them.
    probabilities : ndarray of float32, shape (N, classes)
        Probabilities of the classes.
    """

    labels: Labels
    probabilities: Probabilities

    def __repr__(self) -> str:
        return f"<Prediction of {len(self.labels):,} voxels>"


def predict_labels(
    events: Event | Sequence[Event],
    *,
    engine: str = "sscn",
    weights: str = TRAINED,
    batch: int = 4,
    device: str = "cpu",
    precision: str = "fp32",
) -> list[Prediction]:
    """Label the voxels of events with a trained network.

    Parameters
    ----------
    events : Event or sequence of Event
        As ``open_events`` gives them.
    engine : str
        ``NAME`` or ``NAME:OPTION=VALUE``.
    weights : str
        ``trained`` or a file of weights.
    batch : int
        Events per forward pass.
    device, precision : str
        As for ``measure``.

    Returns
    -------
    list of Prediction
        One per event.

    Raises
    ------
    BadInput
        If the engine cannot run here, or the weights cannot be used.
    """
    from harness.predict.prediction import find_predictor

    predictor = find_predictor(engine, weights, batch=batch, device=device, precision=precision)
    chosen = [events] if isinstance(events, Event) else events
    found: list[Prediction] = []
    for start in range(0, len(chosen), batch):
        some = [chosen[i] for i in range(start, min(start + batch, len(chosen)))]
        for chances in predictor.probabilities(some):
            found.append(Prediction(chances.argmax(1).astype(np.uint8), chances))
    return found


def draw_event(event: Event, labels: Labels | None = None) -> Any:
    """Draw an event by class and by energy.

    Parameters
    ----------
    event : Event
        As ``open_events`` gives them.
    labels : ndarray of uint8, shape (N,), optional
        Predicted labels, shown beside the truth.

    Returns
    -------
    plotly.graph_objects.Figure
        A notebook shows it.
    """
    from harness.events.view import event_figure

    return event_figure(event, labels)
