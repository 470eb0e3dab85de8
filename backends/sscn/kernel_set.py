"""Interface of a kernel set: maps, convolutions and their gradients on plain tensors.

Three kernel sets implement ``KernelSet``: ``reference`` (plain torch, any device and float type),
``cpu`` (C++) and ``cuda`` (Triton). A kernel set does not use autograd; ``autograd_function`` adds
gradients for all of them.

Notes
-----
Conventions of all kernel sets:

* Rows and taps are ordered as ``kernel_map`` describes. Weights are (K, C_in, C_out).
* The input of a convolution has one source ``x`` or two, ``x`` and ``skip``, whose channels are
  concatenated while they are gathered; the concatenation is never stored. C_in counts both.
* ``scale`` and ``shift``, (C_in,) or both None, make the input leaky(scale * x + shift), computed
  while gathering and never stored. They are float32 (float64 for float64 rows). leaky multiplies
  negative values by ``slope``: 0 is ReLU, and 1 is no activation.
* Rows, weights and residuals have the same storage type. Sums are float64, and products are
  accumulated in float32 at least.
* The same input gives the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from backends.sscn.deferred_layer import (
    BatchNorm,
    DeferredLayer,
    Folding,
    GradientStep,
    Origin,
    computed,
)
from backends.sscn.kernel_map import GatherMap, KernelMap

IntervalCallback: TypeAlias = Callable[[float, float], None]
"""Receives the begin and the end of some work, in seconds of ``time.perf_counter``."""


class ConvolutionGradients(NamedTuple):
    """Gradients of a convolution; None for those that were not requested.

    Attributes
    ----------
    to_x, to_skip : Tensor or None
        Of the sources; ``to_skip`` is None or (0,) without a second source.
    to_norm : Tensor or None
        (2, C_in) float64, of ``scale`` and ``shift``; None or (0,) without them.
    to_weight : Tensor or None
        (K, C_in, C_out).
    total : Tensor or None
        Of the output including its part through the sums, which is also the gradient of the
        residual; None if no gradient reached the sums, so that it is ``grad``.
    """

    to_x: Tensor | None
    to_skip: Tensor | None
    to_norm: Tensor | None
    to_weight: Tensor | None
    total: Tensor | None


class ForwardRunner(Protocol):
    """Runs deferred layers, each when it is added or all of them in ``run``."""

    def add(self, layer: DeferredLayer) -> None:
        """Add a layer, whose inputs have been added before."""
        ...

    def report(self, callback: IntervalCallback) -> None:
        """Request a report of the interval in which the work added since the last call is done."""
        ...

    def run(self) -> None:
        """Complete the work that has been added."""
        ...


class BackwardRunner(Protocol):
    """Computes gradients of layers, each when its step is added or all of them in ``run``."""

    def add_gradient(self, slot: int, gradient: Tensor | None) -> None:
        """Add a gradient that reaches a slot from outside of the steps."""
        ...

    def add(self, step: GradientStep) -> None:
        """Add a step; all steps that use its output have been added before."""
        ...

    def report(self, callback: IntervalCallback) -> None:
        """Request a report of the interval in which the work added since the last call is done."""
        ...

    def run(self) -> None:
        """Complete the work that has been added."""
        ...

    @property
    def gradients(self) -> dict[int, Tensor]:
        """The gradients of leaves by slot, after ``run``."""
        ...


class KernelSet(ABC):
    """One implementation of the engine's kernels."""

    name: str
    """The argument of ``selection.load``."""

    builds_network_maps = False
    """Whether ``network_maps`` builds the maps of all levels together."""

    @property
    def instruction_set(self) -> str:
        """The processor's instruction set in use, empty if the kernel set does not choose one."""
        return ""

    @abstractmethod
    def sort_sites(self, sites: Tensor, spatial_size: int, /) -> tuple[Tensor, Tensor]:
        """Sort sites by their Morton keys.

        Parameters
        ----------
        sites : Tensor
            (N, 1 + dim) int32, the batch index first.
        spatial_size : int
            Voxels per side; keys have ``axis_bits(spatial_size)`` bits per axis.

        Returns
        -------
        keys : Tensor
            (N,) int64, strictly ascending.
        order : Tensor
            (N,) int64, the input row of each sorted row.

        Raises
        ------
        InvalidBatch
            If a site is given twice or lies outside the volume.
        """

    @abstractmethod
    def submanifold_map(
        self, keys: Tensor, dim: int, kernel_size: int, spatial_size: int, /
    ) -> KernelMap:
        """Build the map from the sites of a level to themselves, for an odd, centred kernel."""

    @abstractmethod
    def strided_map(self, keys: Tensor, dim: int, /) -> tuple[Tensor, KernelMap]:
        """Build the map from the sites of a level to their parents, for kernel 2 and stride 2.

        Returns
        -------
        coarse : Tensor
            (M,) int64, the keys of the parents: ``keys >> dim`` without repetition.
        down : KernelMap
            Forward from children to parents; ``down.transposed()`` is the map of the inverse
            convolution.
        """

    def network_maps(
        self, keys: Tensor, dim: int, kernel_size: int, spatial_size: int, levels: int, /
    ) -> list[tuple[Tensor, KernelMap, KernelMap | None]]:
        """Build all maps of a network together, in a kernel set for which that is faster.

        Returns
        -------
        list
            For each level its keys, the map of ``submanifold_map``, and that of ``strided_map`` to
            the next coarser level, None for the last one. Without levels, maps are built one by
            one, at their first use.
        """
        return []

    @abstractmethod
    def ordinary_map(
        self, keys: Tensor, dim: int, kernel_size: int, spatial_size: int, /
    ) -> tuple[Tensor, KernelMap]:
        """Build the map to all sites that an odd, centred kernel reaches.

        Returns
        -------
        reached : Tensor
            (M,) int64, the keys of the output sites.
        kernel_map : KernelMap
            The map.
        """

    @abstractmethod
    def convolve(
        self,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        gather_map: GatherMap,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        statistics: bool,
        slope: float = 0.0,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Convolve, add the residual, and sum the result for the norm that follows.

        Returns
        -------
        out : Tensor
            (rows, C_out), the residual included.
        sums : Tensor
            (2, C_out) float64: the sums over the rows of ``out`` and of its squares; (0,) where
            ``statistics`` is false.
        """

    def convolve_in_parts(
        self,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        gather_map: GatherMap,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        statistics: bool,
        slope: float = 0.0,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Convolve like ``convolve``, with sums (parts, 2, C_out) that ``fold_norm`` adds."""
        out, sums = self.convolve(
            x, skip, weight, gather_map, scale, shift, residual, statistics, slope
        )
        return out, sums[None]

    @abstractmethod
    def gradients(
        self,
        grad: Tensor,
        out: Tensor | None,
        grad_sums: Tensor | None,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        kernel_map: KernelMap,
        scale: Tensor | None,
        shift: Tensor | None,
        slope: float = 0.0,
        *,
        to_input: bool = True,
        to_weight: bool = True,
    ) -> ConvolutionGradients:
        """Compute the requested gradients of a convolution.

        Parameters
        ----------
        grad : Tensor
            Gradient of the output.
        out : Tensor or None
            The output, required with ``grad_sums``.
        grad_sums : Tensor or None
            Gradient of the sums of the output, if the loss depends on them.
        x, skip, weight, kernel_map, scale, shift, slope
            The arguments of the convolution.
        to_input, to_weight : bool
            The gradients that are requested; those of scale and shift belong to the input.
        """

    @abstractmethod
    def fold(
        self,
        sums: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        rows: int,
        eps: float,
        momentum: float,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the norm of a batch into scale and shift; update the running statistics in place.

        Parameters
        ----------
        sums : Tensor
            (2, C) float64, the sums of the features and of their squares.
        weight, bias, running_mean, running_var : Tensor
            (C,) float32 (``reference``: any float type).
        rows : int
            Number of sites, at least 2.
        eps, momentum : float
            As in ``torch.nn.BatchNorm1d``.

        Returns
        -------
        scale, shift : Tensor
            (C,) of the type of ``weight``.
        moments : Tensor
            (2, C) float64: mean and inverse standard deviation, for the gradient.
        """

    @abstractmethod
    def fold_gradient(
        self, to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the sums, the weight and the bias of a folded norm.

        ``to_norm`` is (2, C) float64, the gradients of scale and shift.
        """

    @abstractmethod
    def inverted(self, order: Tensor, /) -> Tensor:
        """Return the inverse of a permutation, (N,) int64 contiguous."""

    @abstractmethod
    def take(self, rows: Tensor, order: Tensor, bias: Tensor | None, /) -> Tensor:
        """Return the rows (N, C) in the order (N,) int64, with a bias (C,) added to each."""

    @abstractmethod
    def forward_runner(self) -> ForwardRunner:
        """Return a runner for the layers of one forward pass."""

    @abstractmethod
    def backward_runner(self, saved: Sequence[Tensor], needed: Sequence[bool], /) -> BackwardRunner:
        """Return a runner for the gradients of one backward pass.

        Parameters
        ----------
        saved : sequence of Tensor
            Leaves and outputs by slot.
        needed : sequence of bool
            Whether a gradient is needed, by slot.
        """

    def fold_norm(self, norm: BatchNorm, sources: Sequence[Origin]) -> Folding:
        """Return the folded norm of a batch, folding the sums of its sources the first time."""
        if norm.folding is None:
            sums = [computed(origin.sums) for origin in sources]
            with torch.no_grad():
                folded = self.fold(
                    sums[0] if len(sums) == 1 else torch.cat(sums, 1),
                    norm.weight, norm.bias, *norm.running, norm.rows, norm.eps, norm.momentum,
                )  # fmt: skip
            norm.set_folding(Folding(*folded))
        assert norm.folding is not None
        return norm.folding
