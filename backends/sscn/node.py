"""All layers that lead to some features as one node of autograd: one for each would cost more.

What torch sees of them are their weights and other leaves going in and the features coming out. The
way back runs the gradients of the layers in reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.sscn.compiling import whole
from backends.sscn.convolution import gradients
from backends.sscn.tape import (
    BatchNorm,
    Folding,
    Layer,
    Rows,
    add,
    features,
    inside,
    known,
    leading,
    run,
)


def tracked(rows: Rows) -> Tensor:
    """Return features as autograd knows them; all that leads to them runs now."""
    made = rows.made
    if made is None:
        return features(rows)
    whole(run)(made)
    if made.tracked and not torch.is_grad_enabled():
        return known(made.out)
    if made.tracked:
        made.out, made.sums = rows.features, rows.sums = whole(node)(made)
        made.tracked, rows.made = False, None  # autograd knows it: layers noted before start there
    return features(rows)


def node(last: Layer) -> tuple[Tensor, Tensor | None]:
    """Return the output of a layer and its sums as one node of autograd made them."""
    history = History(last)
    out, sums = _Network.apply(history, *history.leaves)
    return out, sums


class History:
    """The layers that gradients go through to some rows, with a slot for every tensor of theirs.

    First come the leaves, which autograd knows, then the outputs of the layers. The sums of layer
    i have slot -1 - i.
    """

    def __init__(self, last: Layer) -> None:
        self.layers = leading(last, lambda layer: layer.tracked)
        self.leaves: list[Tensor] = []
        self._slots: dict[int, int] = {}
        for layer in self.layers:
            for parameter in layer.parameters():
                self._leaf(parameter)
            for origin in layer.inputs():
                if not inside(origin):
                    self._leaf(features(origin))
            if isinstance(layer.norm, BatchNorm):
                for origin in layer.sources:
                    if not inside(origin):
                        self._leaf(known(origin.sums))
        self._place = {layer.number: place for place, layer in enumerate(self.layers)}
        self.steps = [Step(self, layer) for layer in self.layers]

    def _leaf(self, tensor: Tensor) -> None:
        if id(tensor) not in self._slots:
            self._slots[id(tensor)] = len(self.leaves)
            self.leaves.append(tensor)

    def slot(self, origin: Tensor | Rows | Layer) -> int:
        """Return the slot of features or of a parameter."""
        if isinstance(origin, Tensor):
            return self._slots[id(origin)]
        if isinstance(origin, Layer) and origin.tracked:
            return len(self.leaves) + self._place[origin.number]
        return self._slots[id(features(origin))]

    def sums_slot(self, origin: Rows | Layer) -> int:
        """Return the slot of sums."""
        if isinstance(origin, Layer) and origin.tracked:
            return -1 - self._place[origin.number]
        return self._slots[id(known(origin.sums))]


class Step:
    """A layer by the slots of its tensors, which autograd keeps for it."""

    __slots__ = (
        "connection",
        "folding",
        "functions",
        "norm",
        "out",
        "out_sums",
        "recorder",
        "residual",
        "rows",
        "shape",
        "sources",
        "sums",
        "weight",
        "widths",
    )  # fmt: skip

    def __init__(self, history: History, layer: Layer) -> None:
        norm = layer.norm
        self.sources = tuple(map(history.slot, layer.sources))
        self.rows = layer.sources[0].shape[0]
        self.widths = tuple(origin.shape[1] for origin in layer.sources)
        self.weight, *self.norm = map(history.slot, layer.parameters())
        self.folding: Folding | None = None
        self.sums: tuple[int, ...] = ()
        if isinstance(norm, BatchNorm):
            self.folding = norm.folding
            self.sums = tuple(map(history.sums_slot, layer.sources))
        self.residual = None if layer.residual is None else history.slot(layer.residual)
        self.out, self.out_sums = history.slot(layer), history.sums_slot(layer)
        self.shape = layer.shape
        self.connection = layer.connection
        self.functions = layer.functions
        self.recorder = layer.recorder

    def wants_input(self, wanted: Sequence[bool]) -> bool:
        """Return whether a gradient goes on to its sources or its norm."""
        return any(wanted[slot] for slot in (*self.sources, *self.sums, *self.norm))


class Backward:
    """Makes the gradients of layers of any kernel set, each when it is added.

    A kernel set may have a class of this name that makes all of them in ``run``; see ``Forward``.

    Parameters
    ----------
    saved : sequence of Tensor
        Leaves and outputs by slot.
    wanted : sequence of bool
        Whether a gradient is to reach them.
    """

    def __init__(self, saved: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.saved = saved
        self.wanted = wanted
        self.gradients: dict[int, Tensor] = {}

    def give(self, slot: int, gradient: Tensor | None) -> None:
        """Add what reaches a slot."""
        if gradient is not None:
            before = self.gradients.get(slot)
            self.gradients[slot] = gradient if before is None else before + gradient

    def add(self, step: Step) -> None:
        """Make the gradients of one layer and add them to those that are there."""
        take, saved, folding = self.gradients.pop, self.saved, step.folding
        grad, grad_sums = take(step.out, None), take(step.out_sums, None)
        if grad is None:
            if grad_sums is None:
                return
            grad = torch.zeros_like(saved[step.out])
        scale, shift = (None, None)
        if folding is not None:
            scale, shift, _ = folding
        elif step.norm:
            scale, shift = (saved[slot] for slot in step.norm)
        x, skip = step.sources[0], step.sources[1] if len(step.sources) > 1 else None
        to_x, to_skip, to_norm, to_weight, total = gradients(
            step.functions, grad, saved[step.out], grad_sums, saved[x],
            None if skip is None else saved[skip], saved[step.weight], step.connection,
            scale, shift, to_input=step.wants_input(self.wanted),
            to_weight=self.wanted[step.weight],
        )  # fmt: skip
        self.give(x, to_x)
        if skip is not None:
            self.give(skip, to_skip)
        self.give(step.weight, to_weight)
        if step.residual is not None:
            self.give(step.residual, grad if total is None else total)
        if not step.norm or to_norm is None:
            return
        weight = saved[step.norm[0]]
        of_norm: Sequence[Tensor]
        if folding is None:
            of_norm = to_norm.to(weight.dtype).unbind(0)
        else:
            to_sums, *of_norm = step.functions.fold_gradient(
                to_norm, weight, folding.moments, step.rows
            )
            for slot, share in zip(step.sums, to_sums.split(step.widths, 1), strict=True):
                self.give(slot, share)
        for slot, gradient in zip(step.norm, of_norm, strict=True):
            self.give(slot, gradient)

    def run(self) -> None:
        """Nothing is left to do."""


class _Network(torch.autograd.Function):
    """The node: leaves in, the last layer's features and sums out."""

    @staticmethod
    def forward(ctx: Any, history: History, *leaves: Tensor) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.steps = history.steps
        ctx.save_for_backward(*leaves, *(layer.out for layer in history.layers))
        last = history.layers[-1]
        return known(last.out), last.sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
        saved, steps = ctx.saved_tensors, ctx.steps
        leaves = len(saved) - len(steps)
        wanted = (*ctx.needs_input_grad[1:], *(True,) * len(steps))
        last = steps[-1]
        backward = getattr(last.functions, "Backward", Backward)(saved, wanted)
        backward.give(last.out, grad if grad is None else grad.contiguous())
        backward.give(last.out_sums, grad_sums)
        for step in reversed(steps):
            add(step, backward, back=True)
        backward.run()
        found = backward.gradients
        return None, *(found.get(slot) if wanted[slot] else None for slot in range(leaves))
