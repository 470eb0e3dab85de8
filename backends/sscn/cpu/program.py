"""Whole networks in one call: layers become instructions, which C++ runs one after the other.

The classes stand for those of the same names in ``backends.sscn.tape`` and ``node``.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backends.sscn import tape
from backends.sscn.cpu.arrays import checked, pairs
from backends.sscn.cpu.instructions import (
    ADD,
    CONVOLVE,
    FOLD,
    FOLD_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS_GRADIENT,
    WEIGHT_GRADIENT,
    Instructions,
    Products,
    Tell,
    bits,
)
from backends.sscn.node import Step
from backends.sscn.tape import BatchNorm, Folding, Layer, Rows, known
from backends.uresnet import NORM_MOMENTUM


class _Spare:
    """Arrays that an instruction has done with, for those that follow."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._arrays: list[Tensor] = []

    def give(self, values: Tensor) -> None:
        """Take an array back."""
        size = values.numel()
        place = bisect_left(self._sizes, size)
        self._sizes.insert(place, size)
        self._arrays.insert(place, values)

    def take(self, size: int) -> Tensor:
        """Return an array of at least so many floats, the smallest that there is."""
        place = bisect_left(self._sizes, size)
        if place == len(self._sizes):
            return torch.empty(size)
        del self._sizes[place]
        return self._arrays.pop(place)


def _doubles(channels: int) -> Tensor:
    """Return room for two sums a channel."""
    return torch.empty_like(_two_rows(channels))


@functools.cache
def _two_rows(channels: int) -> Tensor:
    return torch.empty((2, channels), dtype=torch.float64)


class _SpareDoubles:
    """As ``_Spare``, of two sums a channel."""

    def __init__(self) -> None:
        self._by_channels: dict[int, list[Tensor]] = {}

    def give(self, values: Tensor) -> None:
        """Take an array back."""
        self._by_channels.setdefault(values.shape[1], []).append(values)

    def take(self, channels: int) -> Tensor:
        """Return an array for so many channels."""
        there = self._by_channels.get(channels)
        return there.pop() if there else _doubles(channels)


class Forward:
    """Runs layers; what nobody can ask for later shares memory with what comes after it."""

    products = Products.FLOAT32

    def __init__(self) -> None:
        self._instructions = Instructions()
        self._spare = _Spare()

    def add(self, layer: Layer) -> None:
        """Write down what a layer does."""
        address, sources, norm = self._instructions.address, layer.sources, layer.norm
        scale = shift = skip = skip_channels = 0
        if isinstance(norm, BatchNorm):
            folding = norm.folding or self._fold(norm, sources)
            scale, shift = address(folding.scale), address(folding.shift)
        elif norm is not None:
            scale, shift = map(address, norm)
        rows_in, x_channels = sources[0].shape
        if len(sources) > 1:
            skip, skip_channels = address(tape.features(sources[1])), sources[1].shape[1]
        residual = 0 if layer.residual is None else address(tape.features(layer.residual))
        x, weight = address(tape.features(sources[0])), address(layer.weight)
        rows, channels = shape = layer.shape
        lasting = layer.lasting()
        out = torch.empty(shape) if lasting else self._spare.take(rows * channels)
        sums = _doubles(channels) if layer.statistics else None
        keep = self._instructions.keep
        self._instructions.write(
            CONVOLVE, x, skip, rows_in, x_channels, skip_channels, scale, shift, weight, channels,
            *pairs(layer.connection.forward), self.products, residual, keep(out),
            0 if sums is None else keep(sums), layer.waiting == 1 and not lasting,
        )  # fmt: skip
        layer.out, layer.sums = out, sums
        for origin in layer.inputs():
            if isinstance(origin, Layer) and origin.taken():
                values = known(origin.out)
                keep(values)
                if values.dim() == 1:  # from here; somebody may still hold another
                    self._spare.give(values)
                origin.out = origin.sums = None

    def _fold(self, norm: BatchNorm, sources: Sequence[Rows | Layer]) -> Folding:
        address, keep = self._instructions.address, self._instructions.keep
        mean, variance = map(address, norm.running)
        weight, bias = address(norm.weight), address(norm.bias)
        channels = norm.weight.shape[0]
        folding = Folding(torch.empty(channels), torch.empty(channels), _doubles(channels))
        scale, shift, moments = map(keep, folding)
        done = 0
        for origin in sources:
            width = origin.shape[1]
            self._instructions.write(
                FOLD, keep(known(origin.sums)),
                weight + 4 * done, bias + 4 * done, mean + 4 * done, variance + 4 * done,
                norm.rows, width, bits(norm.eps), bits(NORM_MOMENTUM),
                scale + 4 * done, shift + 4 * done, moments + 8 * done, channels,
            )  # fmt: skip
            done += width
        norm.folded(folding)
        return folding

    def tell(self, tell: Tell) -> None:
        """Have somebody told when the layer that was added last began and ended."""
        self._instructions.tell(tell)

    def run(self) -> None:
        """Run what has been written down."""
        self._instructions.run()


class _Flow(NamedTuple):
    """A gradient on its way: at least the floats that it needs, ours to write to or not."""

    values: Tensor
    ours: bool


class Backward:
    """Makes gradients of layers; those on their way share memory."""

    products = Products.FLOAT32

    def __init__(self, saved: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self._saved = saved
        self._wanted = wanted
        self._instructions = Instructions()
        self._spare = _Spare()
        self._doubles = _SpareDoubles()
        self._flows: dict[int, _Flow] = {}
        self._sums: dict[int, Tensor] = {}
        self._parameters: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[Tensor, Sequence[int]]] = []

    def give(self, slot: int, gradient: Tensor | None) -> None:
        """Let what reaches features, or sums if the slot is negative, flow back from there."""
        if gradient is None:
            return
        if slot < 0:
            own = torch.empty(gradient.shape, dtype=torch.float64)  # others may hold it
            self._sums[slot] = own.copy_(gradient)
        else:
            self._flows[slot] = _Flow(checked(gradient), False)

    def add(self, step: Step) -> None:
        """Write down the gradients of a layer."""
        flow, to_sums = self._flows.pop(step.out, None), self._sums.pop(step.out_sums, None)
        if flow is None:
            if to_sums is None:
                return
            flow = _Flow(torch.zeros(step.shape), True)
        if to_sums is not None:
            flow = self._with_statistics(step, flow, to_sums)
        source = self._source(step)
        grad = self._instructions.keep(flow.values), *step.shape
        if self._wanted[step.weight]:
            self._weight_gradient(step, source, grad)
        if step.wants_input(self._wanted):
            self._input_gradient(step, source, grad)
        if step.residual is None:
            self._drop(flow)
        else:
            self._join(step.residual, flow, step.shape[0] * step.shape[1])

    def _with_statistics(self, step: Step, flow: _Flow, to_sums: Tensor) -> _Flow:
        keep = self._instructions.keep
        rows, channels = step.shape
        total = flow if flow.ours else _Flow(self._spare.take(rows * channels), True)
        self._instructions.write(
            STATISTICS_GRADIENT, keep(flow.values), keep(self._saved[step.out]),
            keep(to_sums), rows, channels, keep(total.values),
        )  # fmt: skip
        self._doubles.give(to_sums)
        return total

    def _source(self, step: Step) -> tuple[int, ...]:
        address, saved, sources = self._instructions.address, self._saved, step.sources
        scale = shift = skip = skip_channels = 0
        if step.folding is not None:
            scale, shift = address(step.folding.scale), address(step.folding.shift)
        elif step.norm:
            scale, shift = (address(saved[slot]) for slot in step.norm)
        if len(sources) > 1:
            skip, skip_channels = address(saved[sources[1]]), step.widths[1]
        x = address(saved[sources[0]])
        return x, skip, step.rows, step.widths[0], skip_channels, scale, shift

    def _weight_gradient(self, step: Step, source: Sequence[int], grad: Sequence[int]) -> None:
        _, backward, mirrored = step.connection
        to_weight = torch.empty(self._saved[step.weight].shape)
        self._instructions.write(
            WEIGHT_GRADIENT, *source, *grad, *pairs(backward), mirrored,
            self._instructions.keep(to_weight),
        )  # fmt: skip
        self._parameters.append((step.weight, to_weight))

    def _input_gradient(self, step: Step, source: Sequence[int], grad: Sequence[int]) -> None:
        keep = self._instructions.keep
        _, backward, mirrored = step.connection
        carried, targets, flows = [0, 0], [0, 0], []
        for place, (slot, width) in enumerate(zip(step.sources, step.widths, strict=True)):
            flow = self._flows.pop(slot, None)
            if flow is not None:
                carried[place] = keep(flow.values)
            if flow is None or not flow.ours:
                flow = _Flow(self._spare.take(step.rows * width), True)
            targets[place] = keep(flow.values)
            flows.append(flow)
        normed = step.folding is not None or bool(step.norm)
        to_norm = self._doubles.take(sum(step.widths)) if normed else None
        self._instructions.write(
            INPUT_GRADIENT, *grad, self._instructions.address(self._saved[step.weight]),
            *pairs(backward), mirrored, self.products, *source, *carried, *targets,
            0 if to_norm is None else keep(to_norm),
        )  # fmt: skip
        for slot, flow, width in zip(step.sources, flows, step.widths, strict=True):
            self._join(slot, flow, step.rows * width)
        if to_norm is None:
            return
        if step.folding is None:
            self._norms.append((to_norm, step.norm))
        else:
            self._fold_gradient(step, step.folding, to_norm)
            self._doubles.give(to_norm)

    def _fold_gradient(self, step: Step, folding: Folding, to_norm: Tensor) -> None:
        keep = self._instructions.keep
        channels = to_norm.shape[1]
        parameters = torch.empty(channels), torch.empty(channels)
        self._parameters += zip(step.norm, parameters, strict=True)
        to_weight, to_bias = map(keep, parameters)
        to_norm_at, moments = to_norm.data_ptr(), folding.moments.data_ptr()
        weight = self._instructions.address(self._saved[step.norm[0]])
        done = 0
        for slot, width in zip(step.sums, step.widths, strict=True):
            before = self._sums.get(slot)
            to_sums = self._sums[slot] = self._doubles.take(width) if before is None else before
            self._instructions.write(
                FOLD_GRADIENT, to_norm_at + 8 * done, weight + 4 * done, moments + 8 * done,
                step.rows, width, channels, keep(to_sums), before is not None,
                to_weight + 4 * done, to_bias + 4 * done,
            )  # fmt: skip
            done += width

    def _join(self, slot: int, flow: _Flow, size: int) -> None:
        """Let a gradient flow on, together with what reaches the slot elsewhere."""
        before = self._flows.pop(slot, None)
        if not self._wanted[slot]:
            self._drop(flow)
        elif before is None:
            self._flows[slot] = flow
        else:
            keep = self._instructions.keep
            total = next((each for each in (before, flow) if each.ours), None)
            total = total or _Flow(self._spare.take(size), True)
            self._instructions.write(
                ADD, keep(total.values), keep(before.values), keep(flow.values), size
            )
            for each in (before, flow):
                if each is not total:
                    self._drop(each)
            self._flows[slot] = total

    def _drop(self, flow: _Flow) -> None:
        """Nobody needs this any more."""
        if flow.ours:
            self._spare.give(flow.values)

    def tell(self, tell: Tell) -> None:
        """Have somebody told when the layer that was added last began and ended."""
        self._instructions.tell(tell)

    def run(self) -> None:
        """Run what has been written down."""
        self._instructions.run()

    @property
    def gradients(self) -> dict[int, Tensor]:
        """What has reached the leaves, by slot."""
        found: dict[int, Tensor] = {}
        for slot, (values, _) in self._flows.items():
            shape = self._saved[slot].shape
            found[slot] = values.flatten()[: shape.numel()].view(shape)
        of_norms = [
            (slot, gradient.to(self._saved[slot].dtype))
            for to_norm, slots in self._norms
            for slot, gradient in zip(slots, to_norm, strict=True)
        ]
        for slot, gradient in (*self._sums.items(), *self._parameters, *of_norms):
            found[slot] = found[slot] + gradient if slot in found else gradient
        return found
