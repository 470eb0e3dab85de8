"""Plans: the launches of a network's passes, recorded once and repeated for many batches.

The sequence of layers does not depend on the events. To make a plan, the layers run on symbols
(``symbols.py``) in place of tensors, and their launches are recorded. For each batch, C++ evaluates
the formulas of all sizes, places all arrays in one block of memory, and launches everything through
the driver, in one call from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backends.sscn.autograd_function import GradientGraph
from backends.sscn.cpu import processor
from backends.sscn.cuda import maps, symbols
from backends.sscn.cuda.blocks import dot_precision, tile_rows
from backends.sscn.cuda.conversion import ConvertingGraph, convert_all
from backends.sscn.cuda.launching import INTERPRETED, on_device_of_first
from backends.sscn.cuda.maps import network_jobs
from backends.sscn.cuda.planned_maps import KERNEL_SIZE, MapPlan, NetworkMaps
from backends.sscn.cuda.runners import LaunchedBackward, LaunchedForward
from backends.sscn.cuda.splitting import TICKETS, tickets
from backends.sscn.cuda.symbols import Formulas, Size, Symbol, cdiv
from backends.sscn.cuda.tape import ALIGNMENT, END, Tape, run
from backends.sscn.deferred_layer import (
    DeferredLayer,
    Rows,
    ScaleShift,
    computed,
    increment_versions,
)
from backends.sscn.kernel_map import GatherMap, KernelMap, axis_bits
from backends.sscn.kernel_set import KernelSet
from backends.sscn.layers import SiteTensor
from backends.sscn.layerwise import LayerwiseKernelSet
from backends.sscn.recording import Recording, Unplannable


class _SymbolicCoordinates:
    """The levels of a plan, in place of those of a batch.

    Parameters
    ----------
    formulas : Formulas
    tape : Tape
        To which the arrays of the maps are given, in the order of ``network_jobs``.
    kernels : KernelSet
    dim, depth : int
        Dimensions, and number of levels.
    """

    def __init__(
        self, formulas: Formulas, tape: Tape, kernels: KernelSet, dim: int, depth: int
    ) -> None:
        self.graph = ConvertingGraph(kernels)
        self._sizes = [formulas.rows(level) for level in range(depth)]
        self._maps: dict[tuple[int, int], KernelMap] = {}
        given = [
            self._given(tape, self._sizes[job.queries], job.taps)
            for job in network_jobs(dim, KERNEL_SIZE, depth)
        ]
        for level, both in enumerate(given[:depth]):
            self._maps[level, KERNEL_SIZE] = KernelMap(both, both, True)
        between = given[depth:]
        for level, (down, up) in enumerate(zip(between[::2], between[1::2], strict=True)):
            self._maps[level, 0] = KernelMap(down, up, False)

    def _given(self, tape: Tape, rows: Size, taps: int) -> GatherMap:
        tiles = cdiv(rows, tile_rows(rows))
        shapes = (taps, rows), (rows,), (tiles, taps), (tiles,)
        types = torch.int32, torch.int64, torch.int32, torch.int32
        tensors = tuple(
            tape.given(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)
        )
        return GatherMap(tensors, rows, taps)  # type: ignore[arg-type]

    def rows(self, level: int) -> Size:
        """Return the number of sites of a level."""
        return self._sizes[level]

    def submanifold(self, level: int, kernel_size: int) -> KernelMap:
        """Return the map from the sites of a level to themselves."""
        return self._found(level, kernel_size)

    def down(self, level: int) -> KernelMap:
        """Return the map from a level to the next coarser one."""
        return self._found(level, 0)

    def _found(self, level: int, kernel_size: int) -> KernelMap:
        if (level, kernel_size) not in self._maps:
            raise Unplannable("the maps of the network are not built together")
        return self._maps[level, kernel_size]


class _Passes:
    """The passes of a network for all batches that satisfy the same guards.

    Parameters
    ----------
    record : callable
        Records the layers on an input.
    weights : sequence of Tensor
        Parameters and running statistics.
    training : bool
        Whether gradients are needed.
    x : SiteTensor
        An input, on whose sizes the plans are made.
    sizes : sequence of int
        Its number of sites per level of the network.
    """

    def __init__(
        self,
        record: Callable[[SiteTensor], Recording],
        weights: Sequence[Tensor],
        training: bool,
        x: SiteTensor,
        sizes: Sequence[int],
    ) -> None:
        of_batch, features = x.coordinates, computed(x.rows[0].features)
        kernels = of_batch.graph.kernels
        formulas = Formulas(sizes)
        constant = [*weights]
        forward = Tape(formulas, features.device, constant)
        rows = forward.given((formulas.rows(0), features.shape[1]), features.dtype)
        forward.tickets = forward.given((TICKETS,), torch.int32)
        coordinates = _SymbolicCoordinates(formulas, forward, kernels, of_batch.dim, len(sizes))
        given = SiteTensor(coordinates, 0, (Rows(rows),))  # type: ignore[arg-type]
        self.recording = recording = record(given)
        self.norms: list[ScaleShift] = []
        for layer in recording.layers:
            if isinstance(layer.norm, ScaleShift):
                self.norms.append(layer.norm)
        forward.keep(each for norm in self.norms for each in (norm.scale, norm.shift))
        self.conversions = coordinates.graph.conversions
        forward.keep(made for _, made in self.conversions)
        with symbols.recording(forward):
            if training and self.conversions:
                convert_all(self.conversions)
            runner = LaunchedForward(kernels, recording.layers)
            for layer in recording.layers:
                runner.add(layer)
        last = recording.last
        out = computed(last.out)
        assert isinstance(out, Symbol)
        out.memory.last = END
        self.leaves: list[Tensor] = []
        self.results: list[tuple[int, torch.dtype, torch.Size, tuple[int, ...], int]] = []
        self.result_bytes: int = 0
        self._backward: processor.LaunchPlan | None = None
        if training:
            self._plan_backward(forward, last, kernels, constant)
        arrays, launches = forward.listed()
        guards = [*formulas.guards.items()]
        self._forward: processor.LaunchPlan = processor.LaunchPlan(
            formulas.listed, guards, arrays, launches
        )
        self._out: int = forward.array(out.memory)
        skipped = forward.launches.count(None)
        self._addresses: dict[int, tuple[int, int]] = {
            id(each): (launch - skipped, position)
            for (launch, position), each in forward.addresses.items()
        }

    def _plan_backward(
        self, forward: Tape, last: DeferredLayer, kernels: KernelSet, constant: Sequence[Tensor]
    ) -> None:
        assert isinstance(kernels, LayerwiseKernelSet)
        graph = GradientGraph(last)
        masters = {id(made): weight for weight, made in self.conversions}
        self.leaves = [masters.get(id(leaf), leaf) for leaf in graph.leaves if leaf.requires_grad]
        known = {id(each) for each in constant}
        if not all(id(leaf) in known for leaf in self.leaves):
            raise Unplannable("gradients reach something that is no parameter")
        tape = Tape(forward.formulas, forward.device, constant, forward)
        tape.keep(made for _, made in self.conversions)
        grad = tape.given(last.shape, last.dtype)
        saved = (*graph.leaves, *(computed(layer.out) for layer in graph.layers))
        needed = (*[leaf.requires_grad for leaf in graph.leaves], *[True] * len(graph.layers))
        with symbols.recording(tape):
            master = self.conversions[0][0].dtype if self.conversions else None
            runner = LaunchedBackward(kernels, saved, needed, graph.steps, master)
            runner.add_gradient(graph.steps[-1].out, grad)  # type: ignore[arg-type]
            for step in reversed(graph.steps):
                runner.add(step)
            runner.run()
            gradients = runner.gradients
            tape.transpose()
        places: dict[int, int] = {}
        positions = {id(leaf): position for position, leaf in enumerate(self.leaves)}
        for slot, leaf in enumerate(graph.leaves):
            found: Any = gradients.get(slot)
            if found is None or not leaf.requires_grad:
                continue
            if id(found.memory) in places or found.offset or found.shape != tuple(leaf.shape):
                raise Unplannable("gradients of parameters share an array")
            places[id(found.memory)] = begin = self.result_bytes
            position = positions[id(masters.get(id(leaf), leaf))]
            self.results.append((position, found.dtype, leaf.shape, found.strides, begin))
            size = leaf.numel() * found.dtype.itemsize
            self.result_bytes += cdiv(size, ALIGNMENT) * ALIGNMENT
        self._kept = [*forward.kept, *tape.kept]
        arrays, launches = tape.listed(places)
        self._backward = processor.LaunchPlan(tape.formulas.listed, [], arrays, launches)

    def begin(self, rows: Sequence[int]) -> processor.LaunchedPass | None:
        """Return a forward pass for the sizes of a batch; None if they break the guards."""
        return self._forward.begin(rows)

    def begin_backward(self, rows: Sequence[int]) -> processor.LaunchedPass:
        """Return the backward pass for the sizes of a batch."""
        assert self._backward is not None
        found = self._backward.begin(rows)
        assert found is not None
        return found

    def out(self, passed: processor.LaunchedPass) -> int:
        """Return the place of the output in the memory of a forward pass."""
        return passed.offset(self._out)

    def set_norm(self, number: int, norm: ScaleShift) -> None:
        """Replace scale and shift of a norm."""
        for before, after in zip(self.norms[number][:2], norm[:2], strict=True):
            launch, position = self._addresses.pop(id(before))
            self._forward.set_address(launch, position, after.data_ptr())
            self._addresses[id(after)] = launch, position
        self.norms[number] = norm


class _Prepared(NamedTuple):
    """The forward pass for the sites of a batch.

    Attributes
    ----------
    passes : _Passes
        The passes that hold for its sizes.
    sizes : list of int
        Number of sites per level.
    maps : NetworkMaps
        The maps.
    launched : LaunchedPass
        The forward pass.
    unused : list of Tensor
        Memory for the first pass, in which the maps have been built.
    """

    passes: _Passes
    sizes: list[int]
    maps: NetworkMaps
    launched: processor.LaunchedPass
    unused: list[Tensor]


class _Passed(NamedTuple):
    """A forward pass that has run, with the memory of its arrays."""

    prepared: _Prepared
    features: Tensor
    memory: Tensor


class LaunchPlans:
    """The passes of a network: in evaluation a forward pass, in training a backward pass as well.

    Blocks of kernels depend on sizes; plans for other blocks are made when a batch needs them.

    Parameters
    ----------
    record : callable
        Records the layers on an input.
    weights : sequence of Tensor
        Parameters and running statistics; the plans are valid while they keep their addresses.
    training : bool
        Whether gradients are needed.
    x : SiteTensor
        An input, on whose sizes the first plan is made.
    depth : int
        Levels of the network.

    Attributes
    ----------
    channels, classes : int
        Input features, and channels of the output.
    norms : list of (Tensor, int)
        In evaluation, the scale of each norm and its number.
    leaves : list of Tensor
        Parameters with a gradient; ``bias`` is none of them.
    bias : Tensor or None
        Added to the output.

    Raises
    ------
    Unplannable
        If the layers depend on something that changes from batch to batch.
    """

    def __init__(
        self,
        record: Callable[[SiteTensor], Recording],
        weights: Sequence[Tensor],
        training: bool,
        x: SiteTensor,
        depth: int,
    ) -> None:
        features = computed(x.rows[0].features)
        reason = self._unsupported(features)
        if reason:
            raise Unplannable(reason)
        self._record = record
        self._weights = weights
        self._training = training
        self._dtype = features.dtype
        self._precision = dot_precision(self._dtype)
        self._depth = depth
        self._passes: list[_Passes] = []
        self._maps: dict[tuple[int, int], MapPlan] = {}
        first = self._prepare(x).passes
        recording = first.recording
        self.channels = features.shape[1]
        _, self.classes = recording.last.shape
        self.bias = recording.logits.bias
        self.norms = [(norm.scale, number) for number, norm in enumerate(first.norms)]
        self.leaves = first.leaves
        self._running = recording.running(training)

    @staticmethod
    def _unsupported(features: Tensor) -> str:
        if INTERPRETED:
            return "Triton interprets the kernels"
        return "" if features.device.type == DEVICE else "the features are not on a GPU"

    def is_current(self) -> bool:
        """Return whether torch's settings are those with which the plan was made."""
        return dot_precision(self._dtype) == self._precision

    def convert(self) -> None:
        """Convert weights again that have changed."""
        for passes in self._passes:
            for weight, made in passes.conversions:
                made.copy_(weight.detach())

    def refuse(self, x: SiteTensor) -> str:
        """Return why an input cannot be planned, empty if it can; its pass is then prepared."""
        features = computed(x.rows[0].features)
        if features.dtype is not self._dtype:
            return f"the features are not {self._dtype}"
        reason = self._unsupported(features)
        if not reason:
            try:
                self._prepare(x)
            except Unplannable as error:
                return str(error)
        return reason

    def set_norm(self, number: int, scale: Tensor, shift: Tensor) -> None:
        """Replace the scale and shift of a norm, which the plans keep alive."""
        self.norms[number] = scale, number
        for passes in self._passes:
            passes.set_norm(number, ScaleShift(scale, shift, passes.norms[number].slope))

    def forward(self, x: SiteTensor) -> tuple[Tensor, _Passed]:
        """Run the forward pass.

        Parameters
        ----------
        x : SiteTensor
            Computed features on the sites of an input, with ``channels`` channels.

        Returns
        -------
        logits : Tensor
            (N, classes), rows in input order, the bias included.
        passed : _Passed
            For the backward pass.
        """
        features = computed(x.rows[0].features)
        prepared = self._prepare(x)
        given = [features.data_ptr(), tickets(features).data_ptr(), *prepared.maps.addresses]
        unused = prepared.unused.pop() if prepared.unused else None
        memory = run(features, prepared.launched, None, 0, given, unused)
        rows = prepared.sizes[0]
        begin = prepared.passes.out(prepared.launched)
        end = begin + rows * self.classes * features.element_size()
        out = memory[begin:end].view(features.dtype).view(rows, self.classes)
        coordinates = x.coordinates
        _, inverse = coordinates.input_order(0)
        logits = coordinates.graph.kernels.take(out, inverse, self.bias)
        increment_versions(self._running)
        return logits, _Passed(prepared, features, memory)

    def backward(self, passed: _Passed, x: SiteTensor, grad: Tensor) -> dict[int, Tensor]:
        """Run the backward pass.

        Parameters
        ----------
        passed : _Passed
            The forward pass.
        x : SiteTensor
            Its input.
        grad : Tensor
            (N, classes), the gradient of the logits.

        Returns
        -------
        dict
            The gradient of each leaf, by its position in ``leaves``.
        """
        order, _ = x.coordinates.input_order(0)
        of_rows = x.coordinates.graph.kernels.take(grad, order, None).contiguous().to(self._dtype)
        prepared, features, memory = passed
        passes = prepared.passes
        results = of_rows.new_empty(passes.result_bytes, dtype=torch.uint8)
        given = [
            features.data_ptr(), tickets(features).data_ptr(), *prepared.maps.addresses,
            of_rows.data_ptr(), results.data_ptr(),
        ]  # fmt: skip
        launched = passes.begin_backward(prepared.sizes)
        run(of_rows, launched, prepared.launched, memory.data_ptr(), given)
        typed = {dtype: results.view(dtype) for dtype in {each[1] for each in passes.results}}
        return {
            position: typed[dtype].as_strided(shape, stride, begin // dtype.itemsize)
            for position, dtype, shape, stride, begin in passes.results
        }

    def _prepare(self, x: SiteTensor) -> _Prepared:
        """Return the forward pass for an input; its maps are built, and plans if they are missing.

        Raises
        ------
        Unplannable
            If the layers have no plan.
        """
        coordinates = x.coordinates
        kept, found = coordinates.planned or (None, None)
        if kept is self and found is not None:
            prepared: _Prepared = found
            return prepared
        at = coordinates.levels[0]
        if axis_bits(at.spatial_size) + 1 < self._depth:
            raise Unplannable("the network has more levels than the volume")
        counted = _counted(at.keys, coordinates.dim, self._depth)
        sizes = counted.sizes[: self._depth]
        passes, launched = self._passes_for(x, sizes)
        unused = []
        if isinstance(found, _Prepared) and len(found.sizes) == self._depth:
            built = found.maps  # by the plan of the other mode
        else:
            kind = coordinates.dim, at.spatial_size
            if kind not in self._maps:
                self._maps[kind] = _make_maps(at.keys, counted.ends, sizes, *kind)
            built, memory = self._maps[kind].build(at.keys, counted.ends, sizes, launched.bytes)
            unused.append(memory)
        prepared = _Prepared(passes, sizes, built, launched, unused)
        coordinates.planned = self, prepared
        return prepared

    def _passes_for(
        self, x: SiteTensor, sizes: Sequence[int]
    ) -> tuple[_Passes, processor.LaunchedPass]:
        for place, passes in enumerate(self._passes):
            launched = passes.begin(sizes)
            if launched is not None:
                self._passes.insert(0, self._passes.pop(place))  # the next batch is tried there
                return passes, launched
        features = computed(x.rows[0].features)
        passes = _make(features, self._record, self._weights, self._training, x, sizes)
        self._passes.append(passes)
        launched = passes.begin(sizes)
        assert launched is not None
        return passes, launched


_counted = on_device_of_first(maps.counted)

DEVICE = "cuda"
"""Kind of device whose rows have plans."""


@on_device_of_first
def _make(features: Tensor, *arguments: Any) -> _Passes:
    """Plan passes on the device of the features."""
    return _Passes(*arguments)


@on_device_of_first
def _make_maps(keys: Tensor, *arguments: Any) -> MapPlan:
    """Plan the building of maps on the device of the keys."""
    return MapPlan(keys, *arguments)
