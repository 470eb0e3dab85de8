"""Accuracy of a cell's labels, and whether it differs between two runs on the same events."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.results.verdict import Judgement, Rule, Verdict
from harness.spec.metrics import ACCURACY, format_value
from harness.terminal import program

FEWEST_EVENTS = 16
"""Events from which they are compared one by one; below, voxels are."""

ENTRY = "accuracy."
"""Prefix of the columns of a table of records that hold the accuracy."""


@dataclass(frozen=True)
class Labelling:
    """Accuracy of the labels of a cell, as its records hold it.

    Attributes
    ----------
    nonzero : float
        Mean over events of the share of voxels with the right label.
    correct, labelled : tuple of int
        Voxels with the right label, and with any label, of each event.
    flips : int or None
        Voxels whose label differs from that of the float64 reference.
    lost, gained : int or None
        Those of them that only the reference, or only the engine, labels right.
    michel_efficiency, michel_purity : float or None
        Share of the true Michel electrons that have a candidate, and of the candidates that have a
        true one; None without any.
    confusion : mapping
        True class -> voxels by predicted class.
    class_accuracy, class_purity : mapping
        Class -> share of its voxels, and of the voxels with its label, that are right.
    shown_event : int or None
        Position of the event whose labels are kept for a display.
    shown_labels : str
        These labels, as the record has them.
    """

    nonzero: float
    correct: tuple[int, ...]
    labelled: tuple[int, ...]
    flips: int | None = None
    lost: int | None = None
    gained: int | None = None
    confusion: Mapping[str, Sequence[int]] = field(default_factory=dict)
    michel_efficiency: float | None = None
    michel_purity: float | None = None
    class_accuracy: Mapping[str, float | None] = field(default_factory=dict)
    class_purity: Mapping[str, float | None] = field(default_factory=dict)
    shown_event: int | None = None
    shown_labels: str = ""

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]], row: int) -> Labelling | None:
        """Read the accuracy of a row of a table of records; None if it has none."""
        values = {
            key.removeprefix(ENTRY): column[row]
            for key, column in columns.items()
            if key.startswith(ENTRY) and not _absent(column[row])
        }
        if "nonzero" not in values:
            return None

        def count(name: str) -> int | None:
            return int(values[name]) if name in values else None

        def by_class(name: str) -> dict[str, Any]:
            start = f"{name}."
            return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}

        return cls(
            nonzero=float(values["nonzero"]),
            correct=tuple(values.get("event_correct", ())),
            labelled=tuple(values.get("event_labelled", ())),
            flips=count("flips"),
            lost=count("lost"),
            gained=count("gained"),
            michel_efficiency=_ratio(count("michel_found"), count("michel_true")),
            michel_purity=_ratio(count("michel_matched"), count("michel_candidates")),
            confusion=by_class("confusion"),
            class_accuracy=by_class("class_accuracy"),
            class_purity=by_class("class_purity"),
            shown_event=count("shown_event"),
            shown_labels=str(values.get("shown_labels", "")),
        )

    def labels_of_shown_event(self, voxels: int) -> NDArray[np.uint8] | None:
        """Return the predicted labels of the shown event; None if they are not one per voxel."""
        try:
            # One byte more than there should be, so that a record cannot fill the memory.
            unpacked = zlib.decompressobj().decompress(
                base64.b64decode(self.shown_labels), voxels + 1
            )
        except (ValueError, zlib.error):
            return None
        return np.frombuffer(unpacked, np.uint8) if len(unpacked) == voxels else None

    @property
    def shares(self) -> NDArray[np.float64]:
        """Nonzero accuracy of each event with a labelled voxel."""
        labelled = np.array(self.labelled, np.float64)
        held = labelled > 0
        return np.array(self.correct, np.float64)[held] / labelled[held]

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over events; None for fewer than two events."""
        shares = self.shares
        return float(shares.std(ddof=1) / len(shares) ** 0.5) if len(shares) > 1 else None

    @property
    def text(self) -> str:
        """The accuracy with its standard error, for people."""
        error = self.standard_error
        spread = "" if error is None else f" ± {100 * error:.2f}"
        return f"{100 * self.nonzero:.2f}{spread} %"


def judge_accuracy(before: Labelling, after: Labelling, alpha: float = Rule.alpha) -> Judgement:
    """Judge the accuracies of one cell in two runs, which labelled the same events.

    From ``FEWEST_EVENTS`` events on, Wilcoxon's signed-rank test compares the accuracies event by
    event. For fewer events, the exact test of McNemar (1947, doi:10.1007/BF02295996) compares
    the voxels that one side alone labels right. Both sides are known relative to the float64
    reference, so that these voxels are counted through it.

    Parameters
    ----------
    before, after : Labelling
        The two sides.
    alpha : float
        Level of the test.

    Returns
    -------
    Judgement
        SAME if the means differ by no more than the tolerance of ``ACCURACY``, WORSE or BETTER if
        they do and the test passes, otherwise UNCLEAR.
    """
    was, now = _on_common_events(before, after)
    difference = now - was
    moved = (
        f"from {format_value(was, ACCURACY.unit)} to {format_value(now, ACCURACY.unit)} of the "
        "voxels labelled right"
    )
    ratio = now / was if was else float("nan")
    if abs(difference) <= ACCURACY.tolerance:
        allowed = format_value(ACCURACY.tolerance, ACCURACY.unit)
        return Judgement(Verdict.SAME, f"{moved}, within {allowed}", ratio)
    p, test = _paired_test(before, after)
    if p <= alpha:
        verdict = Verdict.BETTER if difference > 0 else Verdict.WORSE
        return Judgement(verdict, f"{moved}; {test}, p = {p:.1g}", ratio, p=p, test=test)
    return Judgement(
        Verdict.UNCLEAR,
        f"{moved}; {test}, p = {p:.2g}; more events would settle it: {program()} run accuracy",
        ratio,
        p=p,
        test=test,
    )


def _on_common_events(before: Labelling, after: Labelling) -> tuple[float, float]:
    """Return both accuracies; on the events that both labelled, if one labelled fewer."""
    both = min(len(before.shares), len(after.shares))
    if not both or len(before.shares) == len(after.shares):
        return before.nonzero, after.nonzero
    return float(before.shares[:both].mean()), float(after.shares[:both].mean())


def _paired_test(before: Labelling, after: Labelling) -> tuple[float, str]:
    """Return the p-value of the difference, and the name of the test; 1 without a test."""
    from scipy.stats import binomtest, wilcoxon

    both = min(len(before.shares), len(after.shares))
    one, other = before.shares[:both], after.shares[:both]
    if both >= FEWEST_EVENTS:
        differ = other - one
        if not differ.any():
            return 1.0, "no event differs"
        return float(wilcoxon(differ).pvalue), f"signed-rank test over {len(one)} events"
    counts = (before.lost, before.gained, after.lost, after.gained)
    if any(count is None for count in counts):
        return 1.0, "too few events for a test"
    lost = (after.lost or 0) + (before.gained or 0)
    gained = (after.gained or 0) + (before.lost or 0)
    if not lost + gained:
        return 1.0, "no voxel differs"
    p = float(binomtest(lost, lost + gained).pvalue)
    return p, f"exact test over {lost + gained} voxels whose labels changed"


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if whole and part is not None else None


def _absent(value: Any) -> bool:
    """Whether an entry of a table is None or NaN."""
    return value is None or (isinstance(value, float) and value != value)
