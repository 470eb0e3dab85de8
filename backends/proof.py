"""Proof of one engine on this machine: agreement with float64, and fair warm and cold passes.

``python -m harness backends prove NAME`` runs it in the engine's interpreter. ``pytest -m
agreement`` of the repository checks more: large events, optimiser steps and sequences of events.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from backends import cases, registry
from backends.agreement import TOLERANCE, WITHOUT_JUMPS, compare
from backends.arithmetic import autocast
from backends.contract import Backend, master_dtype

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes
    ----------
    title : str
        The check.
    wrong : str
        Why the engine failed it; empty if it passed.
    note : str
        What else there is to say, about a check that passed or was not possible.
    """

    title: str
    wrong: str = ""
    note: str = ""

    def __str__(self) -> str:
        verdict = f"WRONG  {self.title}: {self.wrong}" if self.wrong else f"ok     {self.title}"
        return f"{verdict} ({self.note})" if self.note else verdict


def prove(name: str) -> Iterator[Finding]:
    """Check an engine on each device, in each precision and dimension that it offers here.

    Parameters
    ----------
    name : str
        As in ``backends.registry``; its package can be imported in this process.

    Yields
    ------
    Finding
        As soon as a check is done.
    """
    can = registry.probe(name).capabilities
    if can is None or can.missing or can.network != "uresnet":
        reason = registry.probe(name).reason if can is None else can.missing or can.network
        yield Finding("the UResNet of the contract", f"it cannot be computed here: {reason}")
        return
    for device in can.devices:
        for precision in can.precisions.get(device, ()):
            for dim in can.dims:
                where = f"{device} {precision} {dim}D"

                def load(device: str = device, precision: str = precision, dim: int = dim) -> Any:
                    return registry.load(name, dim=dim, device=device, precision=precision)

                for case in (*cases.CASES, "one_site"):
                    title = f"{where}: {case.replace('_', ' ')} against float64"
                    yield _tried(title, _agreement, load, case, can.training)
                if precision == can.precisions[device][0]:
                    yield _tried(f"{where}: warm passes do not read the sites", _warm, load)
                    yield _tried(
                        f"{where}: cold passes build all maps, warm ones none", _maps, load
                    )
                    yield _tried(f"{where}: the same bits each time", _bits, load)


def _tried(
    title: str, check: Callable[..., Finding], load: Callable[[], Backend], *rest: Any
) -> Finding:
    """Return the finding of a check under its title; an exception is a failure."""
    try:
        found = check(load(), *rest)
    except Exception as error:  # whatever an engine raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        return Finding(title, f"{type(error).__name__}: {error} ({place})")
    return Finding(title, found.wrong, found.note)


def _agreement(backend: Backend, case: str, training: bool) -> Finding:
    """Compare logits, and gradients and statistics of a step, with float64."""
    tolerance = WITHOUT_JUMPS if backend.precision == "fp32" else TOLERANCE[backend.precision]
    worst = 0.0
    for phase in ("forward", "step") if training and case != "one_site" else ("forward",):
        batch, values, expected = cases.with_reference(case, backend.dim, cases.SMALL, phase)
        network = cases.network_on(backend, cases.SMALL, values)
        got = cases.forward(network, batch) if phase == "forward" else cases.step(network, batch)
        found = compare(
            expected,
            backend.precision,
            got.logits,
            got.gradients,
            got.statistics,
            tolerance=tolerance,
        )
        if found.reason:
            return Finding(case, f"{phase}: {found.reason}")
        worst = max(worst, found.rel_rmse or 0.0)
    return Finding(case, note=f"error {worst:.0e}")


def _prepared(backend: Backend) -> tuple[Any, Any]:
    """Return a network in evaluation, and a batch on its device."""
    _, values, _ = cases.with_reference("random_sites", backend.dim, cases.SMALL, "forward")
    network = cases.network_on(backend, cases.SMALL, values).eval()
    return network, cases.random_sites(backend.dim).to(backend.device)


def _call(network: Any, x: Any) -> torch.Tensor:
    backend = network.backend
    with torch.no_grad(), autocast(backend.precision, backend.device):
        logits: torch.Tensor = network(x)
    return logits


def _warm(backend: Backend) -> Finding:
    """Change the sites in place: a warm pass must not notice, a cold one must."""
    network, batch = _prepared(backend)
    features = batch.features.to(master_dtype(backend.precision))
    other = cases.batch_of(cases.scattered(len(batch.sites), 16, backend.dim, seed=9), 16, 2)
    x = cases.tensor_of(network, batch)
    first = _call(network, x)
    sites = batch.sites.clone()
    batch.sites.copy_(other.sites)
    again = _call(network, backend.with_features(x, features))
    moved = _call(network, cases.tensor_of(network, batch))
    batch.sites.copy_(sites)
    back = _call(network, cases.tensor_of(network, batch))
    bound = 10 * TOLERANCE[backend.precision].forward
    if not torch.allclose(again, first, rtol=bound, atol=bound):
        return Finding("", "with_features reads the sites again")
    if torch.allclose(moved, first, rtol=bound, atol=bound):
        return Finding("", "a cold pass does not read its sites: something is kept between calls")
    if not torch.allclose(back, first, rtol=bound, atol=bound):
        return Finding("", "a cold pass depends on the passes before it")
    return Finding("")


class _Counter:
    """A profiling observer that counts the calls that build maps."""

    def __init__(self) -> None:
        self.maps = 0

    def within(self, kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Count calls if they build maps."""

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            def counted(*args: P.args, **kwargs: P.kwargs) -> R:
                self.maps += kind == "map"
                return function(*args, **kwargs)

            return counted

        return decorate

    def deferred(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function."""
        return function

    def outside_layers(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function."""
        return function

    def recorder(self) -> _Recorder:
        """Return a recorder that calls what it is given."""
        return _Recorder()


class _Recorder:
    accepts_intervals = False

    def record_call(self, function: Callable[[], None], *, backward: bool) -> None:
        function()

    def record_interval(self, begin: float, end: float, *, backward: bool) -> None:
        raise AssertionError("intervals are not accepted")


def _maps(backend: Backend) -> Finding:
    """Count the maps that are built in cold and warm passes, as the engine reports them."""
    observe = getattr(backend, "observe", None)
    if observe is None:
        return Finding("", note="not counted: the adapter has no 'observe'")
    network, batch = _prepared(backend)
    features = batch.features.to(master_dtype(backend.precision))
    kept = cases.tensor_of(network, batch)
    with observe(_Counter()):  # maps that were built unobserved may be reported again
        _call(network, kept)
    counts = []
    for warm in (False, False, True, True):
        counter = _Counter()
        with observe(counter):
            if warm:
                _call(network, backend.with_features(kept, features))
            else:
                _call(network, cases.tensor_of(network, batch))
        counts.append(counter.maps)
    cold, again, *warmed = counts
    if any(warmed):
        return Finding("", f"a warm pass builds {max(warmed)} maps")
    if not cold or cold != again:
        return Finding("", f"two cold passes build {cold} and {again} maps")
    return Finding("", note=f"{cold} in a cold pass")


def _bits(backend: Backend) -> Finding:
    """Repeat a pass; other bits are no failure, since sums may be in any order."""
    network, batch = _prepared(backend)
    first, *others = [_call(network, cases.tensor_of(network, batch)).clone() for _ in range(4)]
    same = all(torch.equal(first, other) for other in others)
    return Finding("", note="" if same else "no: they differ from call to call")


def main() -> None:
    """Print the findings on an engine, the only argument; exit with 1 if one is wrong."""
    wrong = count = 0
    for found in prove(sys.argv[1]):
        print(found, flush=True)
        count += 1
        wrong += bool(found.wrong)
    print(f"{sys.argv[1]}: {count - wrong} of {count} checks passed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
