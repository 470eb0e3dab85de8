"""The parts of the study's page on what networks cost, and how that grows."""

from __future__ import annotations

from functools import partial

import pandas as pd

from harness.spec.metrics import format_value
from harness.study import figures, published, results
from harness.study.cells import DENSE, PLANES, TABLE
from harness.study.figures import Figure
from harness.study.results import Overtaking, Sweep
from harness.study.sections import ACCURACIES, Section, Writer, times

_FACTORS = {"time factor": times, "memory factor": times}


def cost_section(w: Writer) -> Section:
    """Table II and the two factors."""
    section = Section("What it costs: Table II, then and now")
    device = w.found.scale.device
    machine = "a V100" if device == "cuda" else "a Xeon Silver 4110"
    held = "torch's allocated maximum" if device == "cuda" else "all that the process held"
    memory = results.whole_memory(w.found.frame, device)
    frame = results.cost_table(w.found.of(TABLE), memory, device)
    if len(frame):
        section.items.append(
            w.table(
                "table-2",
                "Table II",
                f"Published on {machine} in 2018 beside this machine; a ratio above 1 is in favour "
                f"of this machine. Memory is {held}, as the study logged it. Batches of more than "
                f"{w.found.scale.costs.checked_events} events are timed without the comparison "
                "with the float64 truth, which takes too long or too much memory there; the same "
                "engine is checked on smaller batches.",
                frame.assign(
                    published=_with_units(frame, "published"),
                    measured=_with_units(frame, "measured"),
                ).drop(columns="unit"),
                {"published over measured": times},
            )
        )
    factors = results.factor_table(w.found.of(DENSE), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-3d",
                "Dense over sparse",
                f"{factor_sentence(factors, 3)} Memory is what a call adds to its process.",
                _in_units(factors),
                _FACTORS,
            )
        )
    return section


def _with_units(frame: pd.DataFrame, column: str) -> list[str]:
    return [
        format_value(value, unit) for value, unit in zip(frame[column], frame["unit"], strict=True)
    ]


def _in_units(factors: pd.DataFrame) -> pd.DataFrame:
    """Write times and memories of a table of factors with their units."""
    written = factors.drop(columns="dim")
    for name in written.columns:
        for mark, unit in ((" [s]", "s"), (" [bytes]", "bytes")):
            if str(name).endswith(mark):
                written[name] = [format_value(value, unit) for value in factors[name]]
    return written.rename(columns=lambda name: str(name).split(" [s]")[0].split(" [bytes]")[0])


def factor_sentence(factors: pd.DataFrame, dim: int) -> str:
    """Say what the published factors are here, for the same configuration if it was measured."""
    known = published.FACTORS[dim]
    setting = (
        "on a V100, 192 px, batch 4, with a dense network 18 times as large"
        if dim == 3
        else "its abstract does not say for which size and batch"
    )
    tests = factors[factors["pass"] == "test"].dropna(subset=["time factor"])
    said = (
        f"The study found {known['memory']:g}× memory and {known['time']:g}× time for inference "
        f"in {dim}D ({setting})."
    )
    if tests.empty:
        return f"{said} Here no dense configuration gave a time."
    same = tests[(tests["size [px]"] == 192) & (tests["batch"] == 4)]
    if dim == 3 and len(same):
        said += " Here, for the same size and batch:"
    else:
        volume = tests["size [px]"] ** dim * tests["batch"]
        same = tests[volume == volume.max()]
        largest = f"{same.iloc[0]['size [px]']} px, batch {same.iloc[0]['batch']}"
        said += (
            f" That size and batch gave no dense time here; for the largest that did ({largest}):"
            if dim == 3
            else f" Here, for the largest that was measured ({largest}):"
        )
    parts = [
        f"{row['dense engine']} {times(row['memory factor'])} memory, {times(row['time factor'])} "
        "time"
        for _, row in same.iterrows()
    ]
    return (
        f"{said} {'; '.join(parts)}. The engine called dense computes the same function as sparse."
    )


def scaling_section(w: Writer) -> Section:
    """How costs grow, and where dense overtakes."""
    section = Section("How it scales")
    for sweep in results.sweeps(w.found):
        if sweep.name.startswith("dense"):
            section.items.append(_occupancy_figure(w, sweep))
            continue
        laws = sweep.fit_table()
        section.items.append(
            w.figure(
                sweep.name,
                f"Against {sweep.along}, {sweep.held}",
                _law_sentence(sweep, w.sparse),
                sweep.table,
                partial(figures.draw_sweep, sweep=sweep, looks=w.looks),
                size=(9.2, 3.6),
                panels=2,
            )
        )
        section.items.append(
            w.table(
                f"{sweep.name}-fits",
                f"Exponents against {sweep.along}",
                "Least squares on logarithms, with the 95 % interval of the exponent.",
                laws,
            )
        )
    return section


def _law_sentence(sweep: Sweep, engine: str) -> str:
    parts = []
    for phase, word in (("forward", "inference"), ("step", "training")):
        law = sweep.fit(engine, phase, "seconds")
        if law is not None:
            parts.append(f"{word} time grows with the power {law.exponent:.2f}")
    return f"With {engine}, {' and '.join(parts)} of {sweep.along}." if parts else ""


def overtaking_sentence(found: Overtaking | None, word: str, sparse: str) -> str:
    """Say where dense overtakes; empty where that was not measured."""
    if found is None:
        return ""
    if found.at is None:
        return f"in {word} dense never overtakes {sparse}, not even in the fullest cube measured"
    if found.from_the_start:
        return f"in {word} dense is the quicker one already at {100 * found.at:.2g} % active voxels"
    return f"in {word} dense overtakes {sparse} at {100 * found.at:.2g} % active voxels"


def _occupancy_figure(w: Writer, sweep: Sweep) -> Figure:
    parts = [
        overtaking_sentence(results.overtaking(sweep, w.sparse, "dense", phase), word, w.sparse)
        for phase, word in (("forward", "inference"), ("step", "training"))
    ]
    return w.figure(
        sweep.name,
        "Where dense overtakes sparse",
        f"In {sweep.held}, {'; '.join(filter(None, parts))}. Detector events have hundredths of a "
        "per cent.",
        sweep.table,
        partial(figures.draw_times, sweep=sweep, looks=w.looks),
        size=(6.2, 3.6),
    )


def planes_section(w: Writer) -> Section:
    """The same in two dimensions."""
    section = Section("In two dimensions")
    factors = results.factor_table(w.found.of(PLANES), w.sparse)
    if len(factors):
        section.items.append(
            w.table(
                "factors-2d",
                "Dense over sparse in 2D",
                factor_sentence(factors, 2),
                _in_units(factors),
                _FACTORS,
            )
        )
    tests = [t for t in w.found.tests if t.training.dim == 2]
    if tests:
        section.items.append(
            w.table(
                "accuracy-2d",
                "Accuracy in 2D",
                "Events projected on the xy plane; dense and sparse learn from the same batches.",
                results.accuracy_table(tests),
                ACCURACIES,
            )
        )
    return section
