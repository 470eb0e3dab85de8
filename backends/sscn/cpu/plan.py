"""Plans: the instructions of a network's passes, recorded once and run for many batches.

The sequence of layers does not depend on the events. To make a plan, the layers are recorded on a
few sites, and the runners of ``program`` write their instructions without running them. Every
address and every number of rows in them is then replaced by a reference: to a kernel map, to the
rows of a level, to an array, or to an address that is given to each pass. The numbers of rows on
the recording sites are primes above all numbers of channels, so that each size has one meaning.

For each batch, C++ builds all maps, allocates one array for all others, fills in the references and
runs the instructions, in one call from Python.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from backends.sscn.autograd_function import GradientGraph
from backends.sscn.coordinates import CoordinateManager
from backends.sscn.cpu import processor
from backends.sscn.cpu.encoding import FIELDS, WORDS, Field, Group, Opcode, Products
from backends.sscn.cpu.instructions import TAKE, InstructionStream
from backends.sscn.cpu.program import BackwardProgram, ForwardProgram, FreeArrays, FreeSums
from backends.sscn.deferred_layer import (
    BatchNorm,
    DeferredLayer,
    ScaleShift,
    computed,
    increment_versions,
)
from backends.sscn.layers import SiteTensor
from backends.sscn.recording import Recording, Unplannable


class _Meaning(IntEnum):
    """Meaning of a reference; the same as ``Meaning`` in ``plan.hpp``."""

    ROWS = 0
    SIZE = 1
    PAIRS = 2
    ARRAY = 3
    SAVED = 4
    GIVEN = 5


class Plan:
    """The passes of a network: in evaluation a forward pass, in training a backward pass as well.

    Parameters
    ----------
    recording : Recording
        The layers of the network, all in training or all in evaluation.
    products : Products
        Rounding of factors.
    weights : sequence of Tensor
        Parameters and running statistics; the plan is valid while they keep their addresses.
    training : bool
        Whether gradients are needed.

    Attributes
    ----------
    channels : int
        Input features.
    classes : int
        Channels of the output.
    norms : list of (Tensor, int)
        In evaluation, the scale of each norm, and the position of the word with its address; that
        of the shift follows.
    running : list of Tensor
        Running statistics that a pass changes.
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
        recording: Recording,
        products: Products,
        weights: Sequence[Tensor],
        training: bool,
    ) -> None:
        x, last = recording.x, recording.last
        coordinates, features = x.coordinates, computed(x.rows[0].features)
        order, inverse = coordinates.input_order(0)
        rows, self.classes = last.shape
        self.channels = features.shape[1]
        self.bias = recording.logits.bias
        self.norms: list[tuple[Tensor, int]] = []
        self.running = recording.running(training)
        self._shifts: dict[int, Tensor] = {}
        self.leaves: list[Tensor] = []
        self._views: list[tuple[int, torch.Size, tuple[int, ...], int, int]] = []
        self._gradient_floats: list[int] = []
        self._kept = [*weights]
        for layer in recording.layers:
            if isinstance(layer.norm, ScaleShift):
                self._kept += [layer.norm.scale, layer.norm.shift]

        maps = _Maps(coordinates)
        stream, logits = _RecordedStream(), torch.empty(rows, self.classes)
        runner = ForwardProgram(products, stream, _NewArrays())
        for layer in recording.layers:
            runner.add(layer)
        stream.write(
            TAKE, computed(last.out).data_ptr(), inverse.data_ptr(), rows, self.classes,
            0 if self.bias is None else stream.address(self.bias), logits.data_ptr(),
        )  # fmt: skip
        forward = _Relocation(stream, maps, self._kept, [features, inverse, logits])
        if not training:
            self._find_norms(recording.layers)
        backward = None
        if training:
            backward = self._backward(last, products, maps, forward, [features, order])
        self._plan = processor.Plan(
            forward.listed(backward.saved if backward else set()),
            backward.listed(set()) if backward else ([], [], []),
            maps.used,
            len(coordinates.levels),
            coordinates.dim,
        )

    def forward(self, x: SiteTensor) -> tuple[Tensor, processor.PlannedPass]:
        """Run the forward pass; its maps are kept with the coordinates.

        Parameters
        ----------
        x : SiteTensor
            Computed float32 features on the sites of an input, with ``channels`` channels.

        Returns
        -------
        logits : Tensor
            (N, classes), rows in input order, the bias included.
        passed : PlannedPass
            For the backward pass.
        """
        coordinates, features = x.coordinates, computed(x.rows[0].features)
        finest = coordinates.levels[0]
        _, inverse = coordinates.input_order(0)
        logits = torch.empty((len(features), self.classes))
        plan, before = coordinates.planned or (None, None)
        if plan is not self:
            before = None
        passed = self.run_forward(
            before, finest.keys.data_ptr(), len(features),
            finest.spatial_size, (features.data_ptr(), inverse.data_ptr(), logits.data_ptr()),
            torch.get_num_threads(),
        )  # fmt: skip
        if before is None:
            coordinates.planned = self, passed.without_arrays()
        increment_versions(self.running)
        return logits, passed

    def backward(
        self, passed: processor.PlannedPass, x: SiteTensor, grad: Tensor
    ) -> dict[int, Tensor]:
        """Run the backward pass.

        Parameters
        ----------
        passed : PlannedPass
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
        features, grad = computed(x.rows[0].features), grad.contiguous()
        gradients = [torch.empty(floats) for floats in self._gradient_floats]
        given = (features, order, grad, *gradients)
        self.run_backward(
            passed, tuple([each.data_ptr() for each in given]), torch.get_num_threads()
        )
        return {
            position: gradients[number].as_strided(shape, stride, begin)
            for position, shape, stride, number, begin in self._views
        }

    def is_current(self) -> bool:
        """Return whether torch's settings are those with which the plan was made."""
        return True

    def convert(self) -> None:
        """Do nothing: rows and weights have the same type."""

    def refuse(self, x: SiteTensor) -> str:
        """Return why an input cannot be planned, empty if it can."""
        if computed(x.rows[0].features).dtype is not torch.float32:
            return "the features are not float32"
        return ""

    def run_forward(self, *arguments: Any) -> processor.PlannedPass:
        """Make the one call of C++ of a forward pass."""
        return self._plan.forward(*arguments)

    def run_backward(self, *arguments: Any) -> None:
        """Make the one call of C++ of a backward pass."""
        self._plan.backward(*arguments)

    def set_norm(self, number: int, scale: Tensor, shift: Tensor) -> None:
        """Replace the scale and shift of a norm, which the plan keeps alive."""
        _, word = self.norms[number]
        self.norms[number] = scale, word
        self._shifts[number] = shift
        self._plan.set_word(word, scale.data_ptr())
        self._plan.set_word(word + 1, shift.data_ptr())

    def _find_norms(self, layers: Sequence[DeferredLayer]) -> None:
        """Find the words of the norms; instruction i is that of layer i."""
        place = _place(Opcode.CONVOLVE, "source.scale")
        for number, layer in enumerate(layers):
            if layer.norm is not None:
                assert not isinstance(layer.norm, BatchNorm)
                self.norms.append((layer.norm.scale, number * WORDS + place))

    def _backward(
        self,
        last: DeferredLayer,
        products: Products,
        maps: _Maps,
        forward: _Relocation,
        given: list[Tensor],
    ) -> _Relocation:
        """Record the backward pass."""
        graph = GradientGraph(last)
        self.leaves = [leaf for leaf in graph.leaves if leaf.requires_grad]
        known = {id(each) for each in self._kept}
        if not all(id(leaf) in known for leaf in self.leaves):
            raise Unplannable("gradients reach something that is no parameter")
        saved = (*graph.leaves, *(computed(layer.out) for layer in graph.layers))
        needed = (*[leaf.requires_grad for leaf in graph.leaves], *[True] * len(graph.layers))
        stream, arrays, sums = _RecordedStream(), _NewArrays(), _NewSums()
        _, order = given
        rows, classes = last.shape
        of_logits, grad = torch.empty(rows, classes), torch.empty(rows, classes)
        stream.write(
            TAKE, of_logits.data_ptr(), order.data_ptr(), rows, classes, 0, stream.keep(grad)
        )
        runner = BackwardProgram(saved, needed, products, stream, arrays, sums)
        runner.add_gradient(graph.steps[-1].out, grad)
        for step in reversed(graph.steps):
            runner.add(step)
        try:
            results = runner.leaf_arrays()
        except ValueError as error:
            raise Unplannable(str(error)) from None
        found, sizes = [], [0]
        positions = {id(leaf): position for position, leaf in enumerate(self.leaves)}
        given = [*given, of_logits]
        for slot, values in results:
            position, floats = positions[id(graph.leaves[slot])], _padded(values.numel())
            if sizes[-1] and sizes[-1] + floats > _GRADIENT_FLOATS:
                sizes.append(0)
            number, begin = len(sizes) - 1, sizes[-1]
            self._views.append((position, values.shape, values.stride(), number, begin))
            found.append((values, (len(given) + number, 4 * begin)))
            sizes[-1] += floats
        self._gradient_floats = sizes
        return _Relocation(stream, maps, self._kept, given, forward, found)


_GRADIENT_FLOATS = 4 << 20
"""Floats of gradients per array; the C library returns larger arrays to the system when freed."""


def _padded(floats: int) -> int:
    """Return a number of floats rounded up to whole cache lines."""
    return -(-floats // 16) * 16


class _RecordedStream(InstructionStream):
    """Instructions that are kept instead of run."""

    def run(self) -> None:
        """Do nothing."""

    @property
    def instructions(self) -> list[bytes]:
        """The instructions."""
        return self._words

    @property
    def arrays(self) -> list[Tensor]:
        """The arrays of the instructions."""
        return self._arrays


class _NewArrays(FreeArrays):
    """Arrays of which none is used twice; the plan decides what shares memory."""

    def release(self, values: Tensor) -> None:
        """Do nothing."""


class _NewSums(FreeSums):
    """As ``_NewArrays``."""

    def release(self, values: Tensor) -> None:
        """Do nothing."""


def _words(code: Opcode) -> list[tuple[str, str, Field]]:
    """Return the struct (empty outside of a group), the full name and the field of each word."""
    found = []
    for entry in FIELDS[code]:
        if isinstance(entry, Group):
            found += [(entry.struct, f"{entry.name}.{each.name}", each) for each in entry.fields]
        else:
            found.append(("", entry.name, entry))
    return found


_WORDS = {code: _words(code) for code in Opcode}
_ROWS = ("rows", "number")
_INTEGERS = Struct(f"={WORDS}q")


def _place(code: Opcode, name: str) -> int:
    """Return the position of a word within an instruction."""
    return 1 + [full for _, full, _ in _WORDS[code]].index(name)


class _Maps:
    """The gather maps of the recording sites, and those that instructions refer to.

    Attributes
    ----------
    rows : list of int
        Rows of each level.
    used : list of (int, int)
        Level and kernel size, as ``PlannedMap`` in ``plan.hpp``.
    """

    def __init__(self, coordinates: CoordinateManager) -> None:
        self.rows = [len(level.keys) for level in coordinates.levels]
        self.used: list[tuple[int, int]] = []
        self._known: dict[int, tuple[int, int]] = {}
        for number, level in enumerate(coordinates.levels):
            for kernel_size, kernel_map in level.submanifold.items():
                self._known[kernel_map.forward.tensors[0].data_ptr()] = number, kernel_size
            if level.down is not None:
                self._known[level.down.forward.tensors[0].data_ptr()] = number, 0
                self._known[level.down.backward.tensors[0].data_ptr()] = number, -1

    def number(self, address: int, rows: int) -> int:
        """Return the number of a map, by its address; 0 is the identity of some rows."""
        entry = self._known.get(address) if address else (self.level(rows), 1)
        if entry is None:
            raise Unplannable("a kernel map leads to sites that are not those of a level")
        if entry not in self.used:
            self.used.append(entry)
        return self.used.index(entry)

    def level(self, rows: int) -> int:
        """Return the level that has some number of rows."""
        if rows not in self.rows:
            raise Unplannable(f"{rows} rows are not those of a level")
        return self.rows.index(rows)

    def size(self, values: Tensor) -> tuple[int, int]:
        """Return level and bytes per row of an array; -1 and its bytes if it has no rows."""
        for level, rows in enumerate(self.rows):
            if values.numel() % rows == 0:
                return level, values.numel() // rows * values.element_size()
        return -1, values.numel() * values.element_size()


class _Relocation:
    """A recorded stream whose words refer to what depends on the batch.

    Parameters
    ----------
    stream : _RecordedStream
        The instructions.
    maps : _Maps
        The maps of the recording.
    constant : sequence of Tensor
        Tensors whose addresses stay as they are.
    given : sequence of Tensor
        Tensors that are given to each pass.
    before : _Relocation or None
        The forward pass, to whose arrays a backward pass refers.
    results : sequence of (Tensor, (int, int))
        Arrays within those that are given to each pass after ``given``: number and offset in bytes.

    Attributes
    ----------
    saved : set of int
        Arrays of the forward pass to which the instructions refer.
    """

    def __init__(
        self,
        stream: _RecordedStream,
        maps: _Maps,
        constant: Sequence[Tensor],
        given: Sequence[Tensor],
        before: _Relocation | None = None,
        results: Sequence[tuple[Tensor, tuple[int, int]]] = (),
    ) -> None:
        self.saved: set[int] = set()
        self._maps = maps
        self._known = _Addresses()
        for values in constant:
            self._known.add(values, None)
        for number, values in enumerate(given):
            self._known.add(values, (_Meaning.GIVEN, number, 0))
        for values, place in results:
            self._known.add(values, (_Meaning.GIVEN, *place))
        for number, values in enumerate(before.arrays if before else ()):
            self._known.add(values, (_Meaning.SAVED, number, 0))
        self.arrays: list[Tensor] = []
        for values in stream.arrays:
            if self._known.add(values, (_Meaning.ARRAY, len(self.arrays), 0)):
                self.arrays.append(values)
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._words: list[int] = []
        self._references: list[tuple[int, int, int, int]] = []
        for number, instruction in enumerate(stream.instructions):
            self._relocate(number, _INTEGERS.unpack(instruction))

    def listed(self, saved: set[int]) -> tuple[list[int], list[Any], list[Any]]:
        """Return words, references and arrays; a later pass needs the saved ones to the end."""
        end = len(self._words)
        arrays = [
            (
                *self._maps.size(values),
                self._first.get(number, 0),
                end if number in saved else self._last.get(number, 0),
            )
            for number, values in enumerate(self.arrays)
        ]
        return self._words, self._references, arrays

    def _relocate(self, number: int, words: tuple[int, ...]) -> None:
        """Add an instruction, with a reference for each word that depends on the batch."""
        begin = len(self._words)
        self._words += words
        place = 1
        for struct, name, field in _WORDS[Opcode(words[0])]:
            word, at = words[place], begin + place
            place += 1
            if struct == "Pairs":
                if name.endswith(".in"):
                    rows = words[at - begin + 3]
                    map_number = self._maps.number(word, rows)
                    self._references.append((at, _Meaning.PAIRS, map_number, 0))
            elif field.type.endswith("*"):
                if word:
                    self._refer(number, at, word, "const" not in field.type)
            elif field.name in _ROWS:
                self._references.append((at, _Meaning.ROWS, self._maps.level(word), 0))
            elif field.name == "size":
                level, rows = next(
                    (level, rows) for level, rows in enumerate(self._maps.rows) if not word % rows
                )
                self._references.append((at, _Meaning.SIZE, level, word // rows))

    def _refer(self, number: int, at: int, address: int, written: bool) -> None:
        """Refer to an address."""
        found = self._known.find(address)
        if found is None:
            raise Unplannable("a layer reads what no layer has computed")
        reference, offset = found
        if reference is None:
            return
        meaning, index, begin = reference
        self._references.append((at, meaning, index, begin + offset))
        if meaning is _Meaning.SAVED:
            self.saved.add(index)
        elif meaning is _Meaning.ARRAY:
            if index not in self._first and not written:
                raise Unplannable("weights are not contiguous float32 on the CPU")
            self._first.setdefault(index, number)
            self._last[index] = number


class _Addresses:
    """Tensors by the addresses within them."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._found: list[tuple[int, tuple[_Meaning, int, int] | None]] = []

    def add(self, values: Tensor, reference: tuple[_Meaning, int, int] | None) -> bool:
        """Add a tensor; return false if its memory is known."""
        begin = values.data_ptr()
        place = bisect_right(self._begins, begin)
        if place and begin < self._found[place - 1][0]:
            return False
        self._begins.insert(place, begin)
        self._found.insert(place, (begin + values.numel() * values.element_size(), reference))
        return True

    def find(self, address: int) -> tuple[tuple[_Meaning, int, int] | None, int] | None:
        """Return what an address belongs to, and its offset there; None if it is unknown."""
        place = bisect_right(self._begins, address) - 1
        if place < 0 or address >= self._found[place][0]:
            return None
        return self._found[place][1], address - self._begins[place]
