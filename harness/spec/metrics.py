"""All metrics: their place in a record, name, unit, direction and tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """A number of a record that is compared between runs.

    Attributes
    ----------
    key : str
        Its place in the record, nested keys joined by dots: the column of ``store.read``.
    name : str
        Its name for users.
    unit : str
        ``s``, ``bytes``, ``J``, ``voxels``, ``share`` (printed in per cent) or empty for a ratio.
    better : str
        ``lower`` or ``higher``.
    tolerance : float
        The smallest relevant relative difference; absolute for metrics without a unit.
    baseline : str
        The place of a value to subtract (memory in use before the measurement), or empty.
    samples : bool
        Whether the record holds a list of samples, of which the median is the value.
    """

    key: str
    name: str
    unit: str
    better: Direction
    tolerance: float
    baseline: str = ""
    samples: bool = False

    def value(self, record: Mapping[str, Any]) -> float | None:
        """Return the metric of one record, or None where it was not measured."""
        found = lookup(record, self.key)
        if found is None or (self.samples and not found):
            return None
        number = float(median(found)) if self.samples else float(found)
        if self.baseline:
            number -= float(lookup(record, self.baseline) or 0)
        return number


def lookup(record: Mapping[str, Any], key: str) -> Any:
    """Follow a dotted key into a record; None where it leads nowhere."""
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


TIME = Metric("host_seconds", "time", "s", "lower", 0.03, samples=True)
DEVICE_TIME = Metric("device_seconds", "device time", "s", "lower", 0.03, samples=True)
PEAK_RSS = Metric(
    "memory.peak_rss_bytes",
    "peak resident memory",
    "bytes",
    "lower",
    0.05,
    baseline="memory.baseline_bytes",
)
TORCH_ALLOCATED = Metric("memory.torch_allocated_bytes", "torch allocated", "bytes", "lower", 0.02)
TORCH_RESERVED = Metric("memory.torch_reserved_bytes", "torch reserved", "bytes", "lower", 0.02)
NVML_PEAK = Metric(
    "memory.nvml_peak_bytes",
    "device memory",
    "bytes",
    "lower",
    0.05,
    baseline="memory.nvml_baseline_bytes",
)
OUTSIDE_TORCH = Metric(
    "memory.outside_torch_bytes", "device memory outside torch", "bytes", "lower", 0.05
)
WARM_UP = Metric("tuning_seconds", "warm-up with tuning", "s", "lower", 0.5)
ENERGY = Metric("energy_joules", "energy an event", "J", "lower", 0.05)
MAX_ABS_ERROR = Metric("error.max_abs", "largest error of a logit", "", "lower", 1e-3)
REL_RMSE = Metric("error.rel_rmse", "relative error of the logits", "", "lower", 1e-4)
ARGMAX_AGREEMENT = Metric("error.argmax_agreement", "same class", "", "higher", 1e-3)
ACCURACY = Metric("accuracy.nonzero", "nonzero accuracy", "share", "higher", 1e-3)
WRONG_LABELS = Metric("wrong_labels", "share of wrong labels", "", "lower", 1e-3)
"""One minus ``ACCURACY``, for series of which lower is better; no entry of a record."""

FLIPS = Metric("accuracy.flips", "labels unlike float64", "voxels", "lower", 0.0)
GRAD_REL_RMSE = Metric("error.grad_rel_rmse", "relative error of the gradients", "", "lower", 1e-4)

METRICS = (
    TIME,
    DEVICE_TIME,
    PEAK_RSS,
    TORCH_ALLOCATED,
    TORCH_RESERVED,
    NVML_PEAK,
    OUTSIDE_TORCH,
    WARM_UP,
    ENERGY,
    MAX_ABS_ERROR,
    REL_RMSE,
    ARGMAX_AGREEMENT,
    ACCURACY,
    FLIPS,
    GRAD_REL_RMSE,
)


def memory_metric(record: Mapping[str, Any]) -> Metric:
    """Return the metric that says how much memory a record's device gave."""
    return NVML_PEAK if lookup(record, "cell.device") == "cuda" else PEAK_RSS


def format_value(value: float | None, unit: str) -> str:
    """Write a number with its unit as people read it; an en dash where there is none."""
    if value is None or value != value:
        return "–"
    if unit == "s":
        scale, symbol = next(
            ((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if abs(value) >= s),
            (1e-6, "µs"),
        )
        return f"{value / scale:.3g} {symbol}" if value < 1000 else f"{value:.0f} s"
    if unit == "bytes":
        scale, symbol = next(
            (
                (s, u)
                for s, u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
                if abs(value) >= s
            ),
            (1.0, "B"),
        )
        return f"{value / scale:.3g} {symbol}"
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:.3g} {unit}".rstrip()


def format_duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
