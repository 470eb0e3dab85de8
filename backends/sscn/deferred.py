"""Deferred execution: layers are recorded when they are called and run when a result is read.

Detector networks have many small layers, for which the Python code between two of them takes longer
than many of the layers themselves. Therefore a call of a layer only records its arguments. When
features are read, all layers that they depend on run together, and a kernel set may run them in a
single call outside of Python. ``autograd_function`` does the same for gradients.
"""

from __future__ import annotations

import functools
import weakref
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from backends.profiling_hooks import ProfilingObserver
from backends.sscn.deferred_layer import (
    DeferredLayer,
    GradientStep,
    InputNorm,
    Rows,
    ancestors,
)
from backends.sscn.kernel_map import KernelMap
from backends.sscn.kernel_set import IntervalCallback, KernelSet

Work = TypeVar("Work", DeferredLayer, GradientStep)
_Work_contra = TypeVar("_Work_contra", contravariant=True)


class _Runner(Protocol[_Work_contra]):
    def add(self, work: _Work_contra, /) -> None: ...
    def report(self, callback: IntervalCallback) -> None: ...
    def run(self) -> None: ...


class DeferredGraph:
    """Records layers and runs them on one kernel set.

    The graph itself holds no layers: each recorded layer refers to its inputs, so that layers and
    their outputs are freed as soon as nothing uses them.

    Attributes
    ----------
    kernels : KernelSet
        The kernel set.
    observer : ProfilingObserver or None
        Set while the engine is profiled.
    """

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self.observer: ProfilingObserver | None = None

    def record(
        self,
        sources: tuple[Rows, ...],
        weight: Tensor,
        kernel_map: KernelMap,
        norm: InputNorm,
        residual: Rows | None,
        statistics: bool,
    ) -> Rows:
        """Record a layer and return the rows that it will compute.

        The parameters are those of ``DeferredLayer``.
        """
        recorder = None if self.observer is None else self.observer.recorder()
        layer = DeferredLayer(sources, weight, kernel_map, norm, residual, statistics, recorder)
        rows = Rows(None)
        rows.layer = layer
        layer.rows_reference = weakref.ref(rows)
        return rows

    def converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weights of a layer in the type of its rows."""
        return weight.to(dtype)

    def run(self, last: DeferredLayer) -> None:
        """Run a layer and all layers that it depends on, except those that have already run."""
        layers = ancestors(last, lambda layer: layer.out is None)
        if not layers:
            return
        runner = self.kernels.forward_runner()
        try:
            for layer in layers:
                add(layer, runner, backward=False)
            runner.run()
        except BaseException:
            for layer in layers:
                layer.reset()
            raise
        for layer in layers:
            rows = layer.rows_reference()
            if rows is not None and not layer.requires_grad:
                rows.features, rows.sums, rows.layer = layer.out, layer.sums, None


def add(work: Work, runner: _Runner[Work], *, backward: bool) -> None:
    """Add a layer or a step to a runner; if it has a recorder, its duration is recorded."""
    recorder = work.recorder
    if recorder is None:
        runner.add(work)
    elif recorder.accepts_intervals:
        runner.add(work)
        runner.report(functools.partial(recorder.record_interval, backward=backward))
    else:

        def alone() -> None:
            runner.add(work)
            runner.run()

        recorder.record_call(alone, backward=backward)
