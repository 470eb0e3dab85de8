"""Runners that turn many layers into one stream of instructions, which C++ runs in one call."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backends.sscn.cpu.arrays import checked, pairs
from backends.sscn.cpu.instructions import (
    ADD,
    CONVOLVE,
    FOLD,
    FOLD_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS_GRADIENT,
    WEIGHT_GRADIENT,
    InstructionStream,
    Products,
)
from backends.sscn.deferred_layer import (
    BatchNorm,
    DeferredLayer,
    Folding,
    GradientStep,
    Origin,
    computed,
    features,
)
from backends.sscn.kernel_set import IntervalCallback


class FreeArrays:
    """Arrays of floats that earlier instructions no longer use and later ones may overwrite."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._arrays: list[Tensor] = []

    def release(self, values: Tensor) -> None:
        """Make an array available."""
        size = values.numel()
        place = bisect_left(self._sizes, size)
        self._sizes.insert(place, size)
        self._arrays.insert(place, values)

    def allocate(self, size: int) -> Tensor:
        """Return an array of at least ``size`` floats: the smallest free one, or a new one."""
        place = bisect_left(self._sizes, size)
        if place == len(self._sizes):
            return torch.empty(size)
        del self._sizes[place]
        return self._arrays.pop(place)


def _empty_sums(channels: int) -> Tensor:
    """Return an uninitialised (2, channels) float64 array."""
    return torch.empty_like(_two_rows(channels))


@functools.cache
def _two_rows(channels: int) -> Tensor:
    return torch.empty((2, channels), dtype=torch.float64)


class FreeSums:
    """As ``FreeArrays``, for (2, channels) float64 arrays."""

    def __init__(self) -> None:
        self._by_channels: dict[int, list[Tensor]] = {}

    def release(self, values: Tensor) -> None:
        """Make an array available."""
        self._by_channels.setdefault(values.shape[1], []).append(values)

    def allocate(self, channels: int) -> Tensor:
        """Return an array for a number of channels."""
        free = self._by_channels.get(channels)
        return free.pop() if free else _empty_sums(channels)


class ForwardProgram:
    """Writes the instructions of layers, and runs them.

    Outputs that only later instructions of the stream read share memory: an array is reused once
    its last consumer has been written, which is safe because instructions run in order.

    Parameters
    ----------
    products : Products
        Rounding of factors.
    stream : InstructionStream or None
        Where to write; a stream of its own by default.
    free : FreeArrays or None
        Arrays to use.
    """

    def __init__(
        self,
        products: Products,
        stream: InstructionStream | None = None,
        free: FreeArrays | None = None,
    ) -> None:
        self._products = products
        self._stream = stream or InstructionStream()
        self._free = free or FreeArrays()

    def add(self, layer: DeferredLayer) -> None:
        """Write the instructions of a layer: its norm, if it is not folded yet, and itself."""
        address, sources, norm = self._stream.address, layer.sources, layer.norm
        scale = shift = skip = skip_channels = 0
        slope = 0.0
        if isinstance(norm, BatchNorm):
            folding = norm.folding or self._fold(norm, sources)
            scale, shift, slope = address(folding.scale), address(folding.shift), norm.slope
        elif norm is not None:
            scale, shift, slope = address(norm.scale), address(norm.shift), norm.slope
        rows_in, x_channels = sources[0].shape
        if len(sources) > 1:
            skip, skip_channels = address(features(sources[1])), sources[1].shape[1]
        residual = 0 if layer.residual is None else address(features(layer.residual))
        x, weight = address(features(sources[0])), address(layer.weight)
        rows, channels = shape = layer.shape
        retained = layer.retained()
        out = torch.empty(shape) if retained else self._free.allocate(rows * channels)
        sums = _empty_sums(channels) if layer.statistics else None
        keep = self._stream.keep
        self._stream.write(
            CONVOLVE, x, skip, rows_in, x_channels, skip_channels, scale, shift, slope, weight,
            channels, *pairs(layer.kernel_map.forward), self._products, residual, keep(out),
            0 if sums is None else keep(sums), layer.pending_consumers == 1 and not retained,
        )  # fmt: skip
        layer.out, layer.sums = out, sums
        for origin in layer.inputs():
            if isinstance(origin, DeferredLayer) and origin.consumed():
                values = computed(origin.out)
                keep(values)
                if values.dim() == 1:  # allocated above; other tensors may be held by a caller
                    self._free.release(values)
                origin.out = origin.sums = None

    def _fold(self, norm: BatchNorm, sources: Sequence[Origin]) -> Folding:
        address, keep = self._stream.address, self._stream.keep
        mean, variance = map(address, norm.running)
        weight, bias = address(norm.weight), address(norm.bias)
        channels = norm.weight.shape[0]
        folding = Folding(torch.empty(channels), torch.empty(channels), _empty_sums(channels))
        scale, shift, moments = map(keep, folding)
        done = 0
        for origin in sources:
            width = origin.shape[1]
            self._stream.write(
                FOLD, keep(computed(origin.sums)),
                weight + 4 * done, bias + 4 * done, mean + 4 * done, variance + 4 * done,
                norm.rows, width, norm.eps, norm.momentum,
                scale + 4 * done, shift + 4 * done, moments + 8 * done, channels,
            )  # fmt: skip
            done += width
        norm.set_folding(folding)
        return folding

    def report(self, callback: IntervalCallback) -> None:
        """Request a report of the interval in which the work added since the last call is done."""
        self._stream.report(callback)

    def run(self) -> None:
        """Run the instructions."""
        self._stream.run()


class _Gradient(NamedTuple):
    """A gradient that later steps use.

    Attributes
    ----------
    values : Tensor
        The gradient; the array may have spare elements behind it.
    owned : bool
        Whether the program allocated the array, so that instructions may write to it.
    """

    values: Tensor
    owned: bool


class BackwardProgram:
    """Writes the instructions for the gradients of layers, and runs them.

    Gradients of rows between layers share memory as outputs in ``ForwardProgram`` do.

    Parameters
    ----------
    saved, needed
        As in ``KernelSet.backward_runner``.
    products : Products
        Rounding of factors in input gradients.
    stream, free : optional
        As in ``ForwardProgram``.
    free_sums : FreeSums or None
        Arrays of sums to use.
    """

    def __init__(
        self,
        saved: Sequence[Tensor],
        needed: Sequence[bool],
        products: Products,
        stream: InstructionStream | None = None,
        free: FreeArrays | None = None,
        free_sums: FreeSums | None = None,
    ) -> None:
        self._saved = saved
        self._needed = needed
        self._products = products
        self._stream = stream or InstructionStream()
        self._free = free or FreeArrays()
        self._free_sums = free_sums or FreeSums()
        self._by_slot: dict[int, _Gradient] = {}
        self._sums: dict[int, Tensor] = {}
        self._parameters: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[Tensor, Sequence[int]]] = []

    def add_gradient(self, slot: int, gradient: Tensor | None) -> None:
        """Set the gradient of features or, if the slot is negative, of sums."""
        if gradient is None:
            return
        if slot < 0:
            copy = torch.empty(gradient.shape, dtype=torch.float64)  # autograd may use the original
            self._sums[slot] = copy.copy_(gradient)
        else:
            self._by_slot[slot] = _Gradient(checked(gradient), False)

    def add(self, step: GradientStep) -> None:
        """Write the instructions for the gradients of a layer."""
        gradient = self._by_slot.pop(step.out, None)
        to_sums = self._sums.pop(step.out_sums, None)
        if gradient is None:
            if to_sums is None:
                return
            gradient = _Gradient(torch.zeros(step.shape), True)
        if to_sums is not None:
            gradient = self._statistics_gradient(step, gradient, to_sums)
        source = self._source(step)
        grad = self._stream.keep(gradient.values), *step.shape
        if self._needed[step.weight]:
            self._weight_gradient(step, source, grad)
        if step.needs_input_gradient(self._needed):
            self._input_gradient(step, source, grad)
        if step.residual is None:
            self._release(gradient)
        else:
            self._accumulate(step.residual, gradient, step.shape[0] * step.shape[1])

    def _statistics_gradient(
        self, step: GradientStep, gradient: _Gradient, to_sums: Tensor
    ) -> _Gradient:
        """Add the gradient through the sums of a layer to the gradient of its output."""
        keep = self._stream.keep
        rows, channels = step.shape
        total = gradient
        if not gradient.owned:
            total = _Gradient(self._free.allocate(rows * channels), True)
        self._stream.write(
            STATISTICS_GRADIENT, keep(gradient.values), keep(self._saved[step.out]),
            keep(to_sums), rows, channels, keep(total.values),
        )  # fmt: skip
        self._free_sums.release(to_sums)
        return total

    def _source(self, step: GradientStep) -> tuple[float, ...]:
        """Return the words of the input of a layer."""
        address, saved, sources = self._stream.address, self._saved, step.sources
        scale = shift = skip = skip_channels = 0
        if step.folding is not None:
            scale, shift = address(step.folding.scale), address(step.folding.shift)
        elif step.norm:
            scale, shift = (address(saved[slot]) for slot in step.norm)
        if len(sources) > 1:
            skip, skip_channels = address(saved[sources[1]]), step.widths[1]
        x = address(saved[sources[0]])
        return x, skip, step.rows, step.widths[0], skip_channels, scale, shift, step.slope

    def _weight_gradient(
        self, step: GradientStep, source: Sequence[float], grad: Sequence[int]
    ) -> None:
        _, backward, mirrored = step.kernel_map
        to_weight = torch.empty(self._saved[step.weight].shape)
        self._stream.write(
            WEIGHT_GRADIENT, *source, *grad, *pairs(backward), mirrored,
            self._stream.keep(to_weight),
        )  # fmt: skip
        self._parameters.append((step.weight, to_weight))

    def _input_gradient(
        self, step: GradientStep, source: Sequence[float], grad: Sequence[int]
    ) -> None:
        keep = self._stream.keep
        _, backward, mirrored = step.kernel_map
        added, targets, gradients = [0, 0], [0, 0], []
        for place, (slot, width) in enumerate(zip(step.sources, step.widths, strict=True)):
            gradient = self._by_slot.pop(slot, None)
            if gradient is not None:
                added[place] = keep(gradient.values)
            if gradient is None or not gradient.owned:
                gradient = _Gradient(self._free.allocate(step.rows * width), True)
            targets[place] = keep(gradient.values)
            gradients.append(gradient)
        normed = step.folding is not None or bool(step.norm)
        to_norm = self._free_sums.allocate(sum(step.widths)) if normed else None
        self._stream.write(
            INPUT_GRADIENT, *grad, self._stream.address(self._saved[step.weight]),
            *pairs(backward), mirrored, self._products, *source, *added, *targets,
            0 if to_norm is None else keep(to_norm),
        )  # fmt: skip
        for slot, gradient, width in zip(step.sources, gradients, step.widths, strict=True):
            self._accumulate(slot, gradient, step.rows * width)
        if to_norm is None:
            return
        if step.folding is None:
            self._norms.append((to_norm, step.norm))
        else:
            self._fold_gradient(step, step.folding, to_norm)
            self._free_sums.release(to_norm)

    def _fold_gradient(self, step: GradientStep, folding: Folding, to_norm: Tensor) -> None:
        keep = self._stream.keep
        channels = to_norm.shape[1]
        parameters = torch.empty(channels), torch.empty(channels)
        self._parameters += zip(step.norm, parameters, strict=True)
        to_weight, to_bias = map(keep, parameters)
        to_norm_at, moments = to_norm.data_ptr(), folding.moments.data_ptr()
        weight = self._stream.address(self._saved[step.norm[0]])
        done = 0
        for slot, width in zip(step.sums, step.widths, strict=True):
            before = self._sums.get(slot)
            to_sums = self._sums[slot] = (
                self._free_sums.allocate(width) if before is None else before
            )
            self._stream.write(
                FOLD_GRADIENT, to_norm_at + 8 * done, weight + 4 * done, moments + 8 * done,
                step.rows, width, channels, keep(to_sums), before is not None,
                to_weight + 4 * done, to_bias + 4 * done,
            )  # fmt: skip
            done += width

    def _accumulate(self, slot: int, gradient: _Gradient, size: int) -> None:
        """Add to the gradient of a slot."""
        before = self._by_slot.pop(slot, None)
        if not self._needed[slot]:
            self._release(gradient)
        elif before is None:
            self._by_slot[slot] = gradient
        else:
            keep = self._stream.keep
            total = next((each for each in (before, gradient) if each.owned), None)
            total = total or _Gradient(self._free.allocate(size), True)
            self._stream.write(
                ADD, keep(total.values), keep(before.values), keep(gradient.values), size
            )
            for each in (before, gradient):
                if each is not total:
                    self._release(each)
            self._by_slot[slot] = total

    def _release(self, gradient: _Gradient) -> None:
        """Make the array of a gradient that is no longer used available."""
        if gradient.owned:
            self._free.release(gradient.values)

    def report(self, callback: IntervalCallback) -> None:
        """Request a report of the interval in which the work added since the last call is done."""
        self._stream.report(callback)

    def run(self) -> None:
        """Run the instructions."""
        self._stream.run()

    def leaf_arrays(self) -> list[tuple[int, Tensor]]:
        """Return the slot and the array of each needed gradient, if instructions write them all.

        Raises
        ------
        ValueError
            If a gradient is a sum of several arrays, or is not that of a parameter.
        """
        others = [
            *self._by_slot,
            *self._sums,
            *(slot for _, slots in self._norms for slot in slots),
        ]
        written = [(slot, values) for slot, values in self._parameters if self._needed[slot]]
        slots = [slot for slot, _ in written] + [slot for slot in others if self._needed[slot]]
        if len(slots) > len(written) or len(set(slots)) < len(slots):
            raise ValueError("a parameter is used more than once, or gradients reach an input")
        return written

    @property
    def gradients(self) -> dict[int, Tensor]:
        """The gradients of leaves by slot."""
        found: dict[int, Tensor] = {}
        for slot, (values, _) in self._by_slot.items():
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
