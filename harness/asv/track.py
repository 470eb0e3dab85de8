"""Suites as asv benchmarks: one measurement of all cells, from which each metric is read.

asv runs every benchmark and every combination of parameters in a process of its own. Importing
torch and building a network for each would cost minutes, so ``setup_cache`` measures the cells
once, by the ordinary run, and each ``track_*`` only reads. asv treats lower values as better, so
that errors are tracked instead of accuracies.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import BadInput
from harness.spec.cell import TRAINED
from harness.spec.metrics import (
    ACCURACY,
    ARGMAX_AGREEMENT,
    ENERGY,
    GRAD_REL_RMSE,
    REL_RMSE,
    TIME,
    memory_metric,
)

Records = dict[tuple[str, int, int, str], dict[str, Any]]

ONLY = "SSCN_BENCH_ONLY"
"""Environment variable: the engines to measure, separated by commas; all if unset."""

BUDGET = "SSCN_BENCH_BUDGET"
"""Environment variable: seconds of sampling per cell and round."""

RECORDS = "SSCN_BENCH_RECORDS"
"""Environment variable: a folder in which the records behind asv's numbers are kept."""

PROGRESS = "SSCN_BENCH_PROGRESS"
"""Environment variable, set by ``harness asv``: a file that receives the progress of the run."""

ROUNDS = 2


class Cells:
    """Base class of the suites' asv classes.

    Attributes
    ----------
    suite, phase : str
        The suite and the phase of its cells.
    params : tuple of lists
        Engines, sizes, batches and states of the kernel map. Written out in each suite, never
        computed: a list that grows would orphan the history behind it.
    param_names : list of str
        The last one is the field of a cell that the last list of ``params`` has values of.
    """

    suite: ClassVar[str]
    phase: ClassVar[str]
    params: ClassVar[tuple[list[str], list[int], list[int], list[str]]]
    param_names: ClassVar[list[str]] = ["engine", "size", "batch", "map"]
    version = "1"
    timeout = 600

    def setup_cache(self) -> Records:
        """Measure all cells once."""
        return measure_cells(self.suite, self.phase, self.params, self.param_names[-1])

    setup_cache.timeout = 7200  # type: ignore[attr-defined]

    def setup(self, records: Records, engine: str, size: int, batch: int, state: str) -> None:
        """Skip a cell that could not be measured, with the reason."""
        record = records.get((engine, size, batch, state))
        if record is None:
            raise NotImplementedError(f"{engine} was left out by {ONLY}")
        if record["outcome"] != "ok":
            raise NotImplementedError(f"{record['outcome']}: {record['reason']}")

    def track_time(self, records: Records, *key: Any) -> dict[str, Any]:
        """Return the samples, so that asv has quartiles and a rank test."""
        return {"samples": list(records[key][TIME.key]), "number": 1}

    track_time.type = "time"  # type: ignore[attr-defined]
    track_time.unit = "seconds"  # type: ignore[attr-defined]

    def track_peak_memory(self, records: Records, *key: Any) -> float:
        """Return the peak over the baseline."""
        return nan_if_missing(memory_metric(records[key]).value(records[key]))

    track_peak_memory.unit = "bytes"  # type: ignore[attr-defined]

    def track_error(self, records: Records, *key: Any) -> float:
        """Return the relative error of the logits."""
        return nan_if_missing(REL_RMSE.value(records[key]))

    track_error.unit = "relative RMSE"  # type: ignore[attr-defined]
    track_error.version = "2"  # type: ignore[attr-defined]  # 1 had random weights

    def track_disagreement(self, records: Records, *key: Any) -> float:
        """Return the share of sites whose class differs from the float64 reference."""
        return 1 - nan_if_missing(ARGMAX_AGREEMENT.value(records[key]))

    track_disagreement.unit = "share of sites"  # type: ignore[attr-defined]
    track_disagreement.version = "2"  # type: ignore[attr-defined]  # 1 had random weights

    def track_wrong_labels(self, records: Records, *key: Any) -> float:
        """Return one minus the nonzero accuracy; n/a for a step."""
        return 1 - nan_if_missing(ACCURACY.value(records[key]))

    track_wrong_labels.unit = "share of labels"  # type: ignore[attr-defined]

    def track_gradient_error(self, records: Records, *key: Any) -> float:
        """Return the relative error of the worst gradient; n/a for the forward pass."""
        return nan_if_missing(GRAD_REL_RMSE.value(records[key]))

    track_gradient_error.unit = "relative RMSE"  # type: ignore[attr-defined]
    track_gradient_error.version = "2"  # type: ignore[attr-defined]  # 1 had random weights

    def track_energy(self, records: Records, *key: Any) -> float:
        """Return the energy per event; n/a where the machine does not measure it."""
        return nan_if_missing(ENERGY.value(records[key]))

    track_energy.unit = "joules"  # type: ignore[attr-defined]


def nan_if_missing(value: float | None) -> float:
    """Return a metric as asv stores it: NaN where it was not measured."""
    return math.nan if value is None else value


def measure_cells(
    suite: str,
    phase: str,
    params: tuple[Sequence[str], Sequence[int], Sequence[int], Sequence[str]],
    last: str = "map",
) -> Records:
    """Run the cells of a suite that the parameters name, and return their records.

    Parameters
    ----------
    suite : str
        As in ``harness run SUITE``.
    phase : str
        ``forward`` or ``step``.
    params : tuple of sequences
        Engines, sizes, batches, states of the kernel map.
    last : str
        The field that the last parameter is: ``map``, or ``layer``.

    Returns
    -------
    dict
        (engine, size, batch, map) -> record; of several rounds, the samples are joined. Engines
        that ``SSCN_BENCH_ONLY`` leaves out have none.
    """
    from rich.console import Console

    from harness.results import store
    from harness.run.engine_interface import probe_all
    from harness.run.plan import with_events, with_weights
    from harness.run.rounds import Settings, run
    from harness.run.sampling import StopRule
    from harness.run.source import EngineSource
    from harness.run.weight_files import find_weights
    from harness.spec.suite import find_suite

    engines, sizes, batches, states = params
    only = [name for name in os.environ.get(ONLY, "").split(",") if name]
    engines = [name for name in engines if not only or name in only]
    wanted = set(product(engines, sizes, batches, states))
    cells = [
        cell
        for cell in find_suite(suite).cells(backends=engines, sizes=sizes, batches=batches)
        if cell.phase == phase and key_of(cell.to_json(), last) in wanted
    ]
    found = {answer.name: answer for answer in probe_all(engines)}
    budget = budget_of(os.environ)
    source = EngineSource.imported()
    with (
        tempfile.TemporaryDirectory(prefix="sscn-bench-asv-") as folder,
        open(os.environ.get(PROGRESS, os.devnull), "a", encoding="utf-8") as progress,
    ):
        kept = os.environ.get(RECORDS, folder)
        settings = Settings(
            out=Path(kept, f"{source.commit[:12] or 'here'}-{suite}-{phase}.jsonl"),
            repeats=ROUNDS,
            rule=replace(StopRule(), budget=budget),
            weights=TRAINED,
        )
        console = Console(file=progress, width=100)
        console.print(f"{suite}, {phase}: {len(cells)} cells, {ROUNDS} rounds")
        cells = with_weights(with_events(cells, settings.events), find_weights(TRAINED))
        outs = run(cells, settings, found, console, source=source)
        return join_rounds(list(store.records(outs)), last)


def budget_of(environment: Mapping[str, str]) -> float:
    """Return the seconds of sampling per cell and round.

    Raises
    ------
    BadInput
        If the variable is no positive number.
    """
    from harness.run.sampling import StopRule

    text = environment.get(BUDGET)
    if text is None:
        return StopRule().budget
    try:
        budget = float(text)
    except ValueError:
        budget = math.nan
    if not 0 < budget < math.inf:
        raise BadInput(f"{BUDGET} is {text!r}; set it to a number of seconds")
    return budget


def key_of(cell: Mapping[str, Any], last: str) -> tuple[str, int, int, str]:
    """Return the parameters that identify a cell in asv."""
    return cell["backend"], cell["size"], cell["batch"], cell[last]


def join_rounds(records: Sequence[Mapping[str, Any]], last: str = "map") -> Records:
    """Join the rounds of each cell: the samples of all, the rest of the first that is not ok.

    Returns
    -------
    dict
        (engine, size, batch, map) -> record.
    """
    found: Records = {}
    for record in records:
        key = key_of(record["cell"], last)
        if key not in found:
            found[key] = dict(record)
        elif found[key]["outcome"] == "ok":
            if record["outcome"] == "ok":
                found[key][TIME.key] = [*found[key][TIME.key], *record[TIME.key]]
            else:
                found[key] = dict(record)
    return found
