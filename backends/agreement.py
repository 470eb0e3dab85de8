"""Errors of an engine's result against the float64 reference, and their tolerances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.float64_reference import Reference


@dataclass(frozen=True)
class Tolerance:
    """Largest relative root-mean-square errors that are accepted.

    Attributes
    ----------
    forward : float
        Of the logits, the loss and the running statistics.
    gradient : float
        Of all gradients together. The gradient of a single parameter may have ten times this error.
    """

    forward: float
    gradient: float


TOLERANCE = {
    "fp64": Tolerance(1e-10, 1e-9),
    "fp32": Tolerance(1e-5, 1e-2),
    "tf32": Tolerance(1e-2, 0.3),
    "fp16": Tolerance(1e-2, 0.3),
    "bf16": Tolerance(1e-1, 1.0),
}
"""Bounds on detector events.

The forward bounds of fp64 and fp32 allow for another order of summation; those of the other
precisions allow for mantissas of 10 or 7 bits in about forty layers. Gradients jump where rounding
changes the sign of the input of a ReLU. A relative error e changes the sign of about a fraction e
of these inputs, and the gradients by about the square root of e. The gradient bounds are therefore
three times the square root of the forward bounds. No event has shown such a jump in fp64.
"""

WITHOUT_JUMPS = Tolerance(1e-5, 1e-4)
"""Bounds in fp32 for networks in which no input of a ReLU is near zero."""


@dataclass(frozen=True)
class Agreement:
    """Errors against the reference.

    Attributes
    ----------
    max_abs : float or None
        Largest absolute error of a logit; this and the next two are None without a reference.
    rel_rmse : float or None
        Root mean square error of the logits over the root mean square of the reference.
    argmax_agreement : float or None
        Fraction of sites with the same class.
    grad_rel_rmse : float or None
        Like ``rel_rmse``, for all gradients together; None without gradients.
    worst_grad_rel_rmse : float or None
        The largest for the gradient of a single parameter; None without gradients.
    statistics_rel_rmse : float or None
        The largest for a single running statistic; None without a step.
    reason : str
        Why the result is wrong, in one sentence; empty if it is right.
    """

    max_abs: float | None
    rel_rmse: float | None
    argmax_agreement: float | None
    grad_rel_rmse: float | None
    worst_grad_rel_rmse: float | None
    statistics_rel_rmse: float | None
    reason: str

    @property
    def right(self) -> bool:
        """Whether every error is within the tolerance."""
        return not self.reason


SMALL_GRADIENT = 1e-3
"""The error of a parameter's gradient is divided by the gradient's own root mean square, but at
least by this fraction of that of all gradients: some gradients, such as that of a shift before a
norm, are zero except for rounding."""


def rel_rmse(value: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """Return the root mean square error over the root mean square of the reference.

    The error is absolute where the reference is zero; a value that is not finite gives infinity.

    Parameters
    ----------
    value, reference : Tensor
        Tensors of the same shape.
    floor : float
        Smallest root mean square to divide by.
    """
    if reference.numel() == 0:
        return 0.0
    error = (value.detach().cpu().double() - reference.double()).square().mean().sqrt()
    if not bool(torch.isfinite(error)):
        return float("inf")
    scale = max(float(reference.double().square().mean().sqrt()), floor)
    return float(error) / scale if scale > 0 else float(error)


def compare(
    reference: Reference,
    precision: str,
    logits: Tensor,
    gradients: Mapping[str, Tensor] | None = None,
    statistics: Mapping[str, Tensor] | None = None,
    *,
    tolerance: Tolerance | None = None,
) -> Agreement:
    """Compare an engine's result with the reference.

    Parameters
    ----------
    reference : Reference
        The reference for the same network, weights, batch and phase.
    precision : str
        Determines the tolerance.
    logits : Tensor
        (N, classes), any device and float type.
    gradients, statistics : mapping, optional
        Results of ``weights.gradients`` and ``running_statistics`` for the engine's network
        after the step. Both are needed if the reference is that of a step.
    tolerance : Tolerance, optional
        Replaces the tolerance of the precision.
    """
    tolerance = tolerance or TOLERANCE[precision]
    if logits.shape != reference.logits.shape:
        reason = (
            f"the logits have shape {tuple(logits.shape)} instead of "
            f"{tuple(reference.logits.shape)}"
        )
        return Agreement(float("inf"), float("inf"), 0.0, None, None, None, reason)
    value = logits.detach().cpu().double()
    error = (value - reference.logits).abs()
    same_class = value.argmax(1) == reference.logits.argmax(1)
    forward = rel_rmse(value, reference.logits)
    problems = []
    if not bool(torch.isfinite(value).all()):
        problems.append("the logits are not finite")
    elif forward > tolerance.forward:
        problems.append(_excess("logits", forward, tolerance.forward))
    together = None
    worst = _worst(gradients, reference.gradients, 10 * tolerance.gradient, "gradient", problems)
    if gradients is not None and worst is not None and worst < float("inf"):
        names = list(reference.gradients)
        together = rel_rmse(
            torch.cat([gradients[name].flatten() for name in names]),
            torch.cat([reference.gradients[name].flatten() for name in names]),
        )
        if together > tolerance.gradient:
            problems.append(_excess("gradients", together, tolerance.gradient))
    elif worst is not None:
        together = worst
    statistic = _worst(statistics, reference.statistics, tolerance.forward, "statistic", problems)
    return Agreement(
        max_abs=float(error.nan_to_num(float("inf")).max()) if error.numel() else 0.0,
        rel_rmse=forward,
        argmax_agreement=float(same_class.double().mean()) if len(same_class) else 1.0,
        grad_rel_rmse=together,
        worst_grad_rel_rmse=worst,
        statistics_rel_rmse=statistic,
        reason=problems[0] if problems else "",
    )


def finite(logits: Tensor, gradients: Iterable[Tensor] = ()) -> Agreement:
    """Check a network without a reference: its results must be finite."""
    reason = ""
    if not bool(torch.isfinite(logits).all()):
        reason = "the logits are not finite"
    elif not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        reason = "a gradient is not finite"
    return Agreement(None, None, None, None, None, None, reason)


def _excess(what: str, error: float, allowed: float) -> str:
    return f"relative RMSE of the {what} is {error:.1e}, {allowed:.0e} is allowed"


def _worst(
    values: Mapping[str, Tensor] | None,
    reference: Mapping[str, Tensor],
    allowed: float,
    what: str,
    problems: list[str],
) -> float | None:
    """Return the largest error of a single value, and append every problem to ``problems``."""
    if values is None or not reference:
        return None
    errors = {}
    everything = torch.cat([expected.double().flatten() for expected in reference.values()])
    floor = SMALL_GRADIENT * float(everything.square().mean().sqrt())
    for name, expected in reference.items():
        if name not in values:
            problems.append(f"there is no {what} of {name}")
            return float("inf")
        value = values[name]
        if not bool(torch.isfinite(value).all()):
            problems.append(f"the {what} of {name} is not finite")
        elif bool((value == 0).all()) and float(expected.double().abs().max()) > floor:
            problems.append(f"the {what} of {name} is zero")
        errors[name] = rel_rmse(value, expected, floor)
    name = max(errors, key=errors.__getitem__)
    if errors[name] > allowed:
        problems.append(_excess(f"{what} of {name}", errors[name], allowed))
    return errors[name]
