"""Layers are noted first and run together once their result is wanted.

Detector networks have many small layers: what Python takes between two of them costs more than
many a layer. So a layer only notes what it is made of. Where somebody asks for features, all that
leads to them runs in one go, outside Python where the kernel set offers that; ``node`` does the
same for gradients.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backends.profiling_hooks import LayerRecorder
from backends.sscn.kernels import Connection, Kernels
from backends.uresnet import NORM_MOMENTUM


class Rows:
    """Features (N, C) of sites in sorted order, as a user of the engine holds them.

    Either ``features`` are there, with the sums for the norm that follows, if known; or ``made``
    is the layer that they will come from.
    """

    __slots__ = ("__weakref__", "features", "made", "sums")

    def __init__(self, features: Tensor | None, sums: Tensor | None = None) -> None:
        self.features = features
        self.sums = sums
        self.made: Layer | None = None

    @property
    def origin(self) -> Rows | Layer:
        """What a layer made of these rows is noted to be made of."""
        return self.made or self

    @property
    def shape(self) -> tuple[int, int]:
        """Sites and channels."""
        if self.made is not None:
            return self.made.shape
        rows, channels = known(self.features).shape
        return rows, channels

    @property
    def dtype(self) -> torch.dtype:
        """Storage type."""
        return known(self.features).dtype if self.made is None else self.made.dtype


class Folding(NamedTuple):
    """What the sums of a batch were folded into; see ``Kernels.fold``."""

    scale: Tensor
    shift: Tensor
    moments: Tensor


class BatchNorm:
    """The norm of a batch: parameters and sums that are folded when a layer first applies it.

    The running statistics move then.
    """

    __slots__ = ("bias", "eps", "folding", "rows", "running", "weight")

    def __init__(
        self, rows: int, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], eps: float
    ) -> None:
        self.rows = rows
        self.weight = weight
        self.bias = bias
        self.running = running
        self.eps = eps
        self.folding: Folding | None = None

    def fold(self, sources: Sequence[Rows | Layer], functions: Kernels) -> Folding:
        """Fold the sums of the sources that it is applied to, unless that has been done."""
        if self.folding is None:
            sums = [known(origin.sums) for origin in sources]
            with torch.no_grad():
                folded = functions.fold(
                    sums[0] if len(sums) == 1 else torch.cat(sums, 1),
                    self.weight, self.bias, *self.running, self.rows, self.eps, NORM_MOMENTUM,
                )  # fmt: skip
            self.folded(Folding(*folded))
        assert self.folding is not None
        return self.folding

    def folded(self, folding: Folding) -> None:
        """Keep what it was folded into, and tell torch that the running statistics moved."""
        self.folding = folding
        for changed in self.running:
            torch.autograd.graph.increment_version(changed)


Norm = BatchNorm | tuple[Tensor, Tensor] | None
"""Applied with a ReLU: the norm of a batch, or scale and shift."""


def known(value: Tensor | None) -> Tensor:
    """Return what must have been computed."""
    assert value is not None
    return value


_numbers = itertools.count()


def recorder() -> LayerRecorder | None:
    """Return what the work of a layer that is noted now counts for, if somebody watches."""
    return None


def _nobody() -> None:
    """Stand for the weak reference to rows that nobody holds."""


class Layer:
    """A convolution over a kernel map: what it is made of and, once it has run, what came out.

    Parameters
    ----------
    sources : tuple of Rows
        One, or two whose channels are concatenated.
    weight : Tensor
        (K, C_in, C_out).
    connection : Connection
        The kernel maps, made by the same kernel set.
    norm : BatchNorm, (scale, shift) or None
        Applied to the sources, with a ReLU.
    residual : Rows or None
        What is added.
    statistics : bool
        Whether to sum up the result for the norm that follows.
    functions : Kernels
        The kernel set.

    Attributes
    ----------
    waiting : int
        The layers that are still to take its output.
    rows : callable
        Returns what a user holds of it, None once nobody does.
    tracked, kept : bool
        Whether gradients go through it, and whether gradients need its output.

    Raises
    ------
    ValueError
        If rows, channels or taps do not fit together.
    """

    __slots__ = (
        "connection",
        "dtype",
        "functions",
        "kept",
        "norm",
        "number",
        "out",
        "recorder",
        "residual",
        "rows",
        "shape",
        "sources",
        "statistics",
        "sums",
        "tracked",
        "waiting",
        "weight",
    )  # fmt: skip

    def __init__(
        self,
        sources: tuple[Rows, ...],
        weight: Tensor,
        connection: Connection,
        norm: Norm,
        residual: Rows | None,
        statistics: bool,
        functions: Kernels,
    ) -> None:
        taps, inputs, outputs = weight.shape
        rows, channels = sources[0].shape
        connection.check(rows, taps)
        for other in sources[1:]:
            channels += other.shape[1]
        if inputs != channels:
            raise ValueError(f"the weights take {inputs} channels, the input has {channels}")
        self.shape = shape = connection.forward.rows, outputs
        if residual is not None and residual.shape != shape:
            raise ValueError(f"the residual must have shape {shape}, not {residual.shape}")
        self.dtype = sources[0].dtype
        self.sources = tuple([each.origin for each in sources])
        self.weight = weight
        self.connection = connection
        self.norm = norm
        self.residual = None if residual is None else residual.origin
        self.statistics = statistics
        self.functions = functions
        self.number = next(_numbers)
        self.out: Tensor | None = None
        self.sums: Tensor | None = None
        self.rows: Callable[[], Rows | None] = _nobody
        self.recorder = recorder()
        self.tracked = self.kept = torch.is_grad_enabled() and self._needs_gradient()
        self.waiting = 0
        for origin in self.inputs():
            if isinstance(origin, Layer):
                origin.waiting += 1
                origin.kept = origin.kept or self.tracked

    def noted(self) -> Rows:
        """Return the rows that will come from it."""
        rows = Rows(None)
        rows.made = self
        self.rows = weakref.ref(rows)
        return rows

    def _needs_gradient(self) -> bool:
        return any(each.requires_grad for each in self.parameters()) or any(
            map(_needs_gradient, self.inputs())
        )

    def inputs(self) -> tuple[Rows | Layer, ...]:
        """Return everything that it is made of."""
        return self.sources if self.residual is None else (*self.sources, self.residual)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return its weights and those of its norm."""
        norm = self.norm
        if norm is None:
            return (self.weight,)
        if isinstance(norm, BatchNorm):
            return self.weight, norm.weight, norm.bias
        return self.weight, *norm

    def scale_and_shift(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return its norm, folded now unless it has been."""
        norm = self.norm
        if isinstance(norm, BatchNorm):
            scale, shift, _ = norm.fold(self.sources, self.functions)
            return scale, shift
        return norm or (None, None)

    def forget(self) -> None:
        """Forget an output that could not be computed."""
        self.out = self.sums = None
        if isinstance(self.norm, BatchNorm):
            self.norm.folding = None

    def lasting(self) -> bool:
        """Return whether its output may be asked for after other layers have taken it."""
        return self.kept or self.rows() is not None

    def taken(self) -> bool:
        """Note that one layer has taken its output; return whether nobody else will."""
        self.waiting -= 1
        return not (self.waiting or self.lasting())


def inside(origin: Rows | Layer) -> bool:
    """Return whether gradients go on through a layer that autograd does not know."""
    return isinstance(origin, Layer) and origin.tracked


def _needs_gradient(origin: Rows | Layer) -> bool:
    if inside(origin):
        return True
    there = origin.out if isinstance(origin, Layer) else origin.features
    return there is not None and there.requires_grad


def features(origin: Rows | Layer) -> Tensor:
    """Return the features of rows that are there, or of a layer that has run."""
    return known(origin.out if isinstance(origin, Layer) else origin.features)


def run(last: Layer) -> None:
    """Run all layers that lead to one and have not run yet."""
    layers = leading(last, lambda layer: layer.out is None)
    if not layers:
        return
    forward = getattr(last.functions, "Forward", Forward)()
    try:
        for layer in layers:
            add(layer, forward, back=False)
        forward.run()
    except BaseException:
        for layer in layers:
            layer.forget()
        raise
    for layer in layers:
        rows = layer.rows()
        if rows is not None and not layer.tracked:
            rows.features, rows.sums, rows.made = layer.out, layer.sums, None


def add(work: Any, runner: Any, *, back: bool) -> None:
    """Add a layer or a step to those that run together; tell who watches when it has run."""
    recorder: LayerRecorder | None = work.recorder
    if recorder is None:
        runner.add(work)
    elif recorder.accepts_intervals and hasattr(runner, "tell"):
        runner.add(work)
        runner.tell(functools.partial(recorder.record_interval, backward=back))
    else:

        def alone() -> None:
            runner.add(work)
            runner.run()

        recorder.record_call(alone, backward=back)


def leading(last: Layer, wanted: Callable[[Layer], bool]) -> list[Layer]:
    """Return the wanted layers that lead to one over wanted ones, in the order of their noting."""
    if not wanted(last):
        return []
    found = {last.number: last}
    todo = [last]
    while todo:
        for origin in todo.pop().inputs():
            if isinstance(origin, Layer) and origin.number not in found and wanted(origin):
                found[origin.number] = origin
                todo.append(origin)
    return [found[number] for number in sorted(found)]


class Forward:
    """Runs layers of any kernel set, each when it is added.

    A kernel set may have a class of this name that runs all of them in ``run``, and then tells
    what was given to its method ``tell`` when the layer that was added last began and ended.
    """

    def add(self, layer: Layer) -> None:
        """Run a layer."""
        sources = [features(origin) for origin in layer.sources]
        scale, shift = layer.scale_and_shift()
        with torch.no_grad():
            out, sums = layer.functions.convolve(
                sources[0], sources[1] if len(sources) > 1 else None, layer.weight,
                layer.connection.forward, scale, shift,
                None if layer.residual is None else features(layer.residual), layer.statistics,
            )  # fmt: skip
        layer.out, layer.sums = out, sums if layer.statistics else None
        for origin in layer.inputs():
            if isinstance(origin, Layer) and origin.taken():
                origin.out = origin.sums = None

    def run(self) -> None:
        """Nothing is left to do."""
