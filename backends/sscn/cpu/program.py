"""Whole networks in one call: layers become instructions, which C++ runs one after the other.

The classes stand for those of the same names in ``backends.sscn.tape`` and ``node``.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from backends.sscn import tape
from backends.sscn.cpu import _kernels
from backends.sscn.cpu.arrays import checked, pairs
from backends.sscn.node import Step
from backends.sscn.tape import BatchNorm, Folding, Layer, Rows, known
from backends.uresnet import NORM_MOMENTUM

Tell = Callable[[float, float], None]

_WORDS = 24
_PADDING = [0] * _WORDS


class _Kind(IntEnum):
    """What an instruction does; the numbers are those of ``program.hpp``."""

    FOLD = 0
    CONVOLVE = 1
    STATISTICS_GRADIENT = 2
    INPUT_GRADIENT = 3
    WEIGHT_GRADIENT = 4
    FOLD_GRADIENT = 5
    ADD = 6


class _Instructions:
    """A list of instructions and the arrays that they need; addresses stand for arrays."""

    def __init__(self) -> None:
        self._words = array("q")
        self._kept: list[Tensor] = []
        self._told: list[tuple[int, Tell]] = []

    def write(self, kind: _Kind, *words: int) -> None:
        """Append an instruction."""
        self._words.extend((kind, *words))
        self._words.extend(_PADDING[len(words) + 1 :])

    def keep(self, values: Tensor) -> int:
        """Return the address of an array, which is kept alive until the instructions have run."""
        self._kept.append(values)
        return values.data_ptr()

    def check(self, values: Tensor) -> int:
        """As ``keep``, of an array from outside."""
        return self.keep(checked(values))

    def tell(self, tell: Tell) -> None:
        """Have somebody told when what was written since the last call began and ended."""
        self._told.append((len(self._words) // _WORDS, tell))

    def run(self) -> None:
        """Run all of them and forget them."""
        if not self._words:
            return
        address, size = self._words.buffer_info()
        times = array("d", [0.0]) * (size // _WORDS + 1) if self._told else array("d")
        _kernels.run(
            address, size // _WORDS, times.buffer_info()[0] if times else 0,
            torch.get_num_threads(),
        )  # fmt: skip
        begin = 0
        for end, tell in self._told:
            tell(times[begin], times[end])
            begin = end
        del self._words[:], self._kept[:], self._told[:]


class _Spare:
    """Arrays that an instruction has done with, for those that follow."""

    def __init__(self) -> None:
        self._arrays: list[Tensor] = []
        self._sizes: list[int] = []

    def give(self, values: Tensor) -> None:
        """Take an array back."""
        self._arrays.append(values)
        self._sizes.append(values.numel())

    def take(self, size: int) -> Tensor:
        """Return an array of at least so many floats, the smallest that there is."""
        best = min((found for found in self._sizes if found >= size), default=None)
        if best is None:
            return torch.empty(size)
        place = self._sizes.index(best)
        del self._sizes[place]
        return self._arrays.pop(place)


def _doubles(channels: int) -> Tensor:
    """Return room for two sums a channel."""
    return torch.empty_like(_two_rows(channels))


@functools.cache
def _two_rows(channels: int) -> Tensor:
    return torch.empty((2, channels), dtype=torch.float64)


@functools.cache
def _bits(value: float) -> int:
    """Return the bits of a double as an integer."""
    (bits,) = struct.unpack("q", struct.pack("d", value))
    return int(bits)


def _source(addresses: Sequence[int], rows: int, widths: Sequence[int]) -> tuple[int, ...]:
    """Return the words of an input that may have two parts, without its norm."""
    if len(addresses) == 1:
        return addresses[0], 0, rows, widths[0], 0
    return *addresses, rows, *widths


class Forward:
    """Runs layers; what nobody can ask for later shares memory with what comes after it."""

    def __init__(self) -> None:
        self._instructions = _Instructions()
        self._spare = _Spare()

    def add(self, layer: Layer) -> None:
        """Write down what a layer does."""
        check, keep = self._instructions.check, self._instructions.keep
        if isinstance(layer.norm, BatchNorm) and layer.norm.folding is None:
            self._fold(layer.norm, layer.sources)
        rows, channels = layer.shape
        out = torch.empty(layer.shape) if layer.lasting() else self._spare.take(rows * channels)
        sums = _doubles(channels) if layer.statistics else None
        self._instructions.write(
            _Kind.CONVOLVE,
            *_source(
                [check(tape.features(origin)) for origin in layer.sources],
                layer.sources[0].shape[0],
                [origin.shape[1] for origin in layer.sources],
            ),
            *(0 if each is None else check(each) for each in layer.scale_and_shift()),
            check(layer.weight),
            channels,
            *pairs(layer.connection.forward),
            0 if layer.residual is None else check(tape.features(layer.residual)),
            keep(out),
            0 if sums is None else keep(sums),
        )
        layer.out, layer.sums = out, sums
        for origin in layer.inputs():
            if isinstance(origin, Layer) and origin.taken():
                values = known(origin.out)
                if values.dim() == 1:  # from here; somebody may still hold another
                    self._spare.give(values)
                origin.out = origin.sums = None

    def _fold(self, norm: BatchNorm, sources: Sequence[Rows | Layer]) -> None:
        check, keep = self._instructions.check, self._instructions.keep
        channels = norm.weight.numel()
        weight, bias, mean, variance = map(check, (norm.weight, norm.bias, *norm.running))
        folding = Folding(
            torch.empty_like(norm.weight), torch.empty_like(norm.bias), _doubles(channels)
        )
        scale, shift, moments = map(keep, folding)
        done = 0
        for origin in sources:
            width = origin.shape[1]
            self._instructions.write(
                _Kind.FOLD, keep(known(origin.sums)),
                weight + 4 * done, bias + 4 * done, mean + 4 * done, variance + 4 * done,
                norm.rows, width, _bits(norm.eps), _bits(NORM_MOMENTUM),
                scale + 4 * done, shift + 4 * done, moments + 8 * done, channels,
            )  # fmt: skip
            done += width
        norm.folded(folding)

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

    def __init__(self, saved: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self._saved = saved
        self._wanted = wanted
        self._instructions = _Instructions()
        self._spare = _Spare()
        self._flows: dict[int, _Flow] = {}
        self._sums: dict[int, Tensor] = {}
        self._parameters: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[Tensor, Sequence[int]]] = []

    def give(self, slot: int, gradient: Tensor | None) -> None:
        """Let what reaches features, or sums if the slot is negative, flow back from there."""
        if gradient is None:
            return
        if slot < 0:
            self._sums[slot] = gradient.to(torch.float64).contiguous()
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
            _Kind.STATISTICS_GRADIENT, keep(flow.values), keep(self._saved[step.out]),
            keep(to_sums), rows, channels, keep(total.values),
        )  # fmt: skip
        return total

    def _source(self, step: Step) -> tuple[int, ...]:
        check = self._instructions.check
        addresses = [check(self._saved[slot]) for slot in step.sources]
        if step.folding is not None:
            scale, shift, _ = map(self._instructions.keep, step.folding)
        elif step.norm:
            scale, shift = (check(self._saved[slot]) for slot in step.norm)
        else:
            scale = shift = 0
        return *_source(addresses, step.rows, step.widths), scale, shift

    def _weight_gradient(self, step: Step, source: Sequence[int], grad: Sequence[int]) -> None:
        _, backward, mirrored = step.connection
        to_weight = torch.empty(self._saved[step.weight].shape)
        self._instructions.write(
            _Kind.WEIGHT_GRADIENT, *source, *grad, *pairs(backward), mirrored,
            self._instructions.keep(to_weight),
        )  # fmt: skip
        self._parameters.append((step.weight, to_weight))

    def _input_gradient(self, step: Step, source: Sequence[int], grad: Sequence[int]) -> None:
        check, keep = self._instructions.check, self._instructions.keep
        _, backward, mirrored = step.connection
        carried = [self._flows.pop(slot, None) for slot in step.sources]
        targets = [
            before
            if before is not None and before.ours
            else _Flow(self._spare.take(step.rows * width), True)
            for before, width in zip(carried, step.widths, strict=True)
        ]
        alone = len(targets) == 1
        normed = step.folding is not None or bool(step.norm)
        to_norm = _doubles(sum(step.widths)) if normed else None
        self._instructions.write(
            _Kind.INPUT_GRADIENT, *grad, check(self._saved[step.weight]), *pairs(backward),
            mirrored, *source,
            *(0 if before is None else keep(before.values) for before in carried), *(0,) * alone,
            *(keep(target.values) for target in targets), *(0,) * alone,
            0 if to_norm is None else keep(to_norm),
        )  # fmt: skip
        for slot, target, width in zip(step.sources, targets, step.widths, strict=True):
            self._join(slot, target, step.rows * width)
        if to_norm is None:
            return
        if step.folding is None:
            self._norms.append((to_norm, step.norm))
        else:
            self._fold_gradient(step, step.folding, to_norm)

    def _fold_gradient(self, step: Step, folding: Folding, to_norm: Tensor) -> None:
        keep = self._instructions.keep
        channels = to_norm.shape[1]
        parameters = [torch.empty_like(self._saved[slot]) for slot in step.norm]
        self._parameters += zip(step.norm, parameters, strict=True)
        to_weight, to_bias = map(keep, parameters)
        to_norm_at, moments = keep(to_norm), keep(folding.moments)
        weight = self._instructions.check(self._saved[step.norm[0]])
        done = 0
        for slot, width in zip(step.sums, step.widths, strict=True):
            before = self._sums.get(slot)
            to_sums = self._sums[slot] = _doubles(width) if before is None else before
            self._instructions.write(
                _Kind.FOLD_GRADIENT, to_norm_at + 8 * done, weight + 4 * done, moments + 8 * done,
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
                _Kind.ADD, keep(total.values), keep(before.values), keep(flow.values), size
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
