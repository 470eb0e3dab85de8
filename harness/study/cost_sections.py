"""The sections of the page on the costs of networks, and on their growth."""

from __future__ import annotations

from functools import partial

import pandas as pd

from harness.report.rows import times
from harness.spec.metrics import format_value
from harness.study import plots, published, sweeps, tables
from harness.study.cells import DENSE, PLANES, TABLE
from harness.study.document import (
    ACCURACY_FORMATS,
    FULL,
    WIDE,
    Figure,
    PageWriter,
    Section,
)
from harness.study.fits import MIN_POINTS
from harness.study.sweeps import Crossover, Sweep

_FACTORS = {"time factor": times, "memory factor": times}


def cost_section(w: PageWriter) -> Section:
    """Return the section on Table II and on the ratio of dense and sparse costs."""
    section = Section("Time and memory: Table II of the 2018 study, and this machine")
    device = w.found.scale.device
    machine = "a V100" if device == "cuda" else "a Xeon Silver 4110"
    held = (
        "the maximum that torch allocated"
        if device == "cuda"
        else "the peak resident memory of the process"
    )
    memory = tables.total_memory(w.found.frame, device)
    frame = tables.cost_table(w.found.of(TABLE), memory, device)
    if len(frame):
        section.items.append(
            w.table(
                "table-2",
                "Table II",
                f"Published values of {machine} beside values of this machine; a ratio above 1 is "
                f"in favour of this machine. Memory is {held}, as in the study. Batches of more "
                f"than {w.found.scale.costs.checked_events} events are not compared with the "
                "float64 reference, which takes too much time or memory for them; the same engine "
                "is checked on smaller batches.",
                frame.assign(
                    published=_with_units(frame, "published"),
                    measured=_with_units(frame, "measured"),
                ).drop(columns="unit"),
                {"published over measured": times},
            )
        )
    factors = tables.factor_table(w.found.of(DENSE), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-3d",
                "Dense over sparse",
                f"{factor_sentence(factors, 3)} Memory is the additional memory of a call.",
                factors.drop(columns="dim"),
                _FACTORS,
            )
        )
    return section


def _with_units(frame: pd.DataFrame, column: str) -> list[str]:
    return [
        format_value(value, unit) for value, unit in zip(frame[column], frame["unit"], strict=True)
    ]


def factor_sentence(factors: pd.DataFrame, dim: int) -> str:
    """Return the published ratios beside those of the same, or the largest, configuration here."""
    factor = published.FACTORS[dim]
    setting = (
        "on a V100, 192 px, batch 4, with a dense network 18 times as large"
        if dim == 3
        else "for a size and a batch that its abstract does not state"
    )
    tests = factors[factors["pass"] == "test"].dropna(subset=["time factor"])
    said = (
        f"The 2018 study found {factor['memory']:g}× memory and {factor['time']:g}× time for "
        f"inference in {dim}D ({setting})."
    )
    if tests.empty:
        return f"{said} On this machine, no dense configuration gave a time."
    same = tests[(tests["size [px]"] == 192) & (tests["batch"] == 4)]
    if dim == 3 and len(same):
        said += " On this machine, for the same size and batch:"
    else:
        volume = tests["size [px]"] ** dim * tests["batch"]
        same = tests[volume == volume.max()]
        largest = f"{same.iloc[0]['size [px]']} px, batch {same.iloc[0]['batch']}"
        said += (
            " On this machine, that size and batch gave no dense time; for the largest "
            f"configuration with one ({largest}):"
            if dim == 3
            else f" On this machine, for the largest measured configuration ({largest}):"
        )
    parts = [
        f"{row['dense engine']} {times(row['memory factor'])} memory, "
        f"{times(row['time factor'])} time"
        for _, row in same.iterrows()
    ]
    return (
        f"{said} {'; '.join(parts)}. The engine dense computes the same function as the sparse "
        "engines."
    )


def scaling_section(w: PageWriter) -> Section:
    """Return the section on the growth of costs, and on the crossover of dense and sparse."""
    section = Section("Scaling")
    for sweep in sweeps.sweeps_of(w.found):
        if sweep.name.startswith("dense"):
            section.items.append(_occupancy_figure(w, sweep))
            continue
        section.items.append(
            w.figure(
                sweep.name,
                f"Against {sweep.along}, {sweep.fixed}",
                _law_sentence(sweep, w.sparse),
                sweep.table,
                partial(plots.draw_sweep, sweep=sweep, looks=w.looks),
                size=FULL,
                panels=2,
            )
        )
        laws = sweep.fit_table()
        if len(laws):
            section.items.append(
                w.table(
                    f"{sweep.name}-fits",
                    f"Exponents against {sweep.along}",
                    "Least-squares fits to the logarithms, with the 95 % confidence interval of "
                    "the exponent.",
                    laws,
                )
            )
    return section


def _law_sentence(sweep: Sweep, engine: str) -> str:
    """Return the exponents of an engine, or the reason why there are none."""
    parts = []
    for phase, word in plots.PHASES.items():
        law = sweep.fit(engine, phase, "seconds")
        if law is not None:
            parts.append(f"the {word} time is proportional to the power {law.exponent:.2f}")
    if not parts:
        return f"With fewer than {MIN_POINTS} points, no power law is fitted."
    return f"With {engine}, {' and '.join(parts)} of {sweep.along}."


def crossover_sentence(found: Crossover | None, word: str, sparse: str) -> str:
    """Return the crossover of dense and sparse in words; empty if it was not measured."""
    if found is None:
        return ""
    if found.at is None:
        return f"in {word}, dense is never faster than {sparse}, up to the fullest cube"
    if found.from_the_start:
        return f"in {word}, dense is faster already at {100 * found.at:.2g} % active voxels"
    return f"in {word}, dense is faster than {sparse} from {100 * found.at:.2g} % active voxels on"


def _occupancy_figure(w: PageWriter, sweep: Sweep) -> Figure:
    parts = [
        crossover_sentence(sweeps.find_crossover(sweep, w.sparse, "dense", phase), word, w.sparse)
        for phase, word in plots.PHASES.items()
    ]
    return w.figure(
        sweep.name,
        "Crossover of dense and sparse",
        f"In {sweep.fixed}: {'; '.join(filter(None, parts))}. In detector events, less than 0.1 % "
        "of the voxels are active.",
        sweep.table,
        partial(plots.draw_times, sweep=sweep, looks=w.looks),
        size=WIDE,
    )


def planes_section(w: PageWriter) -> Section:
    """Return the section on two dimensions."""
    section = Section("In two dimensions")
    factors = tables.factor_table(w.found.of(PLANES), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-2d",
                "Dense over sparse in 2D",
                factor_sentence(factors, 2),
                factors.drop(columns="dim"),
                _FACTORS,
            )
        )
    tests = [t for t in w.found.tests if t.training.dim == 2]
    if tests:
        section.items.append(
            w.table(
                "accuracy-2d",
                "Accuracy in 2D",
                "Events are projected on the xy plane. Dense and sparse networks are trained on "
                "the same batches.",
                tables.accuracy_table(tests),
                ACCURACY_FORMATS,
            )
        )
    return section
