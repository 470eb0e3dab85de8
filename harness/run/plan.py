"""The plan of a run: the events of each cell, which cells can run, and their order."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from harness.errors import BadInput
from harness.events import open_events
from harness.events.child_reader import open_in_child
from harness.run.engine_interface import Kind
from harness.run.weight_files import WeightFile
from harness.spec.cell import RANDOM, STACKS, TRAINED, Cell, EventSpec, ModelSpec, Question
from harness.spec.suite import DENSE

EVENTS_APART = 16
"""Largest number of events of a file that is measured event by event at batch 1."""


class Availability(Protocol):
    """The result of ``backends.registry.probe``."""

    @property
    def capabilities(self) -> Any:
        """The capabilities of the engine on this machine, or None."""
        ...

    @property
    def reason(self) -> str:
        """Why the engine cannot run on this machine."""
        ...


def with_events(cells: Sequence[Cell], source: str, *, needs_labels: bool = False) -> list[Cell]:
    """Return the cells with their events named.

    Cells of sizes that a file does not have are left out. A file of up to ``EVENTS_APART`` events
    is measured event by event at batch 1, with one cell per event that is not empty. Larger batches
    are drawn from all its events, as ``harness.events.benchmark_batch`` does.

    Parameters
    ----------
    cells : sequence of Cell
        Without events.
    source : str
        ``sample`` or the path of a file.
    needs_labels : bool
        Whether the events must have labels.

    Raises
    ------
    BadInput
        If the file cannot be used or has no event of a size that the cells have.
    """
    if source == "sample":
        hashes = {size: open_events(source, size=size).sha256 for size in _sizes(cells)}
        return [
            replace(cell, events=replace(cell.events, sha256=hashes[cell.size])) for cell in cells
        ]
    with open_in_child(source) as events:
        if len(events.sizes) != 1 or events.size not in _sizes(cells):
            has = ", ".join(map(str, events.sizes))
            wanted = ", ".join(map(str, _sizes(cells)))
            raise BadInput(f"{source} has events of {has} px, the suite measures {wanted} px")
        if needs_labels and not events.has_labels:
            raise BadInput(f"{source} has no labels to compare with; give events with labels")
        filled = [i for i in range(len(events)) if len(events[i])] if _few(events) else []
    name = Path(source).name
    found = []
    for cell in cells:
        if cell.size != events.size:
            continue
        apart = filled if cell.batch == 1 and filled else [None]
        for index in apart:
            which = name if index is None else f"{name}[{index}]"
            count = cell.events.count if index is None else 0
            spec = replace(EventSpec(which, events.sha256), count=count)
            found.append(replace(cell, events=spec))
    return found


def with_weights(cells: Sequence[Cell], found: WeightFile | None) -> list[Cell]:
    """Return the cells with their weights named.

    Single layers, chains of convolutions, and networks other than that of the packaged weights keep
    random weights.

    Parameters
    ----------
    cells : sequence of Cell
        Without weights.
    found : WeightFile or None
        The file; None for random weights.

    Raises
    ------
    BadInput
        If a user's file has weights of another network than a cell, or if cells whose labels are to
        be compared with the truth have random weights.
    """
    named = [_with_weights(cell, found) for cell in cells]
    if any(cell.events.count and cell.weights == RANDOM for cell in named):
        raise BadInput(
            "random weights label nothing right; give those of a trained network with "
            "--weights FILE"
        )
    return named


def _with_weights(cell: Cell, found: WeightFile | None) -> Cell:
    if found is None or cell.layer or cell.phase in STACKS:
        return cell
    if (cell.model, cell.dim) == (found.model, found.dim):
        return replace(cell, weights=found.label)
    if found.name == TRAINED:
        return cell
    raise BadInput(
        f"{found.path} has the weights of {network_in_words(found.model, found.dim)}, and the "
        f"suite measures {network_in_words(cell.model, cell.dim)}; choose other weights, or their "
        f"network with --network {found.model.label}"
    )


def network_in_words(model: ModelSpec, dim: int) -> str:
    """Return the sizes of a network, and the settings that differ from the study's."""
    sizes = (
        f"a {dim}D UResNet of {model.filters} filters, depth {model.depth}, {model.reps} blocks "
        f"per level and {model.classes} classes"
    )
    others = replace(
        model,
        **{name: getattr(ModelSpec, name) for name in ("filters", "depth", "reps", "classes")},
    )
    return sizes if others == ModelSpec() else f"{sizes}, with {others.label}"


def _few(events: Sequence[Any]) -> bool:
    return len(events) <= EVENTS_APART


def _sizes(cells: Iterable[Cell]) -> list[int]:
    return sorted({cell.size for cell in cells})


def unavailable_reason(cell: Cell, found: Availability) -> str:
    """Return why a cell cannot be measured here; empty if it can."""
    can = found.capabilities
    if can is None:
        return found.reason
    lacking = _lacking(cell, can)
    if lacking:
        return f"{cell.backend} {lacking}"
    if cell.device not in can.devices:
        return f"{cell.backend} does not run on {cell.device} here"
    if cell.precision not in can.precisions.get(cell.device, ()):
        return f"{cell.backend} has no {cell.precision} on {cell.device}"
    if cell.dim not in can.dims:
        return f"{cell.backend} has no {cell.dim}D"
    if cell.phase in STACKS and cell.phase not in can.kinds:
        return f"{cell.backend} has no {cell.phase} convolution"
    if cell.phase in TRAINING and not can.training:
        return f"{cell.backend} does not train"
    for option, value in cell.options.items():
        if value not in can.options.get(option, ()):
            return f"{cell.backend} has no option {option}={value} here"
    return ""


TRAINING = ("step", "input-gradient", "weight-gradient")


def _lacking(cell: Cell, can: Any) -> str:
    """Return the kind of layer that an engine lacks for a cell; empty if none.

    An engine that lacks one kind of layer cannot run the UResNet, but its other layers.
    """
    if not cell.layer:
        return f"lacks {can.missing}" if can.missing else ""
    if can.network != "uresnet":
        return f"computes a network of its own ({can.network}), whose layers are others"
    needed = [cell.layer_kind]
    if cell.layer_kind == Kind.INVERSE:
        needed.insert(0, Kind.STRIDED)
    absent = [kind for kind in needed if kind not in can.kinds]
    if absent:
        return f"has no {absent[0]} convolution"
    if can.missing and not set(Kind) - {Kind.ORDINARY} - set(can.kinds):
        return f"lacks {can.missing}"
    return ""


def groups(cells: Sequence[Cell], seed: int, number: int) -> list[list[Cell]]:
    """Group the cells that answer the same question, in the seeded order of a round.

    Every second round has the reverse order, so that a drift of the machine over a pair of rounds
    affects all questions alike. Dense engines on the CPU take thousands of times as long as the
    others: they are groups of their own, after the others.
    """
    slow = [cell for cell in cells if cell.device == "cpu" and cell.backend in DENSE]
    fast = [cell for cell in cells if cell not in slow]
    return [*_by_question(fast, seed, number), *_by_question(slow, seed, number)]


def _by_question(cells: Sequence[Cell], seed: int, number: int) -> list[list[Cell]]:
    together: Mapping[Question, list[Cell]] = defaultdict(list)
    for cell in cells:
        together[cell.question].append(cell)
    order = list(together)
    random.Random(f"{seed} {number // 2}").shuffle(order)
    if number % 2:
        order.reverse()
    return [together[question] for question in order]
