"""What a set of kernels must offer: maps, convolutions and their gradients on raw tensors.

Three sets implement these functions under the same names: ``reference`` (plain torch), ``cpu``
(C++) and ``cuda`` (Triton). Nothing here knows autograd; ``convolution`` adds it for all sets.

Conventions of all sets
-----------------------
* Rows of a level are its sites in ascending order of their Morton keys (see ``morton``).
* A kernel has K taps, the last axis fastest. Weights are (K, C_in, C_out).
* ``x`` and ``skip`` are the two sources of an input whose channels are concatenated, ``skip``
  may be absent; C_in counts both. The concatenation is never stored.
* ``scale`` and ``shift``, (C_in,) or both absent, make the input relu(scale * x + shift), applied
  while gathering and never stored. They are float32 (float64 for float64 rows).
* Rows, weights and residuals share one storage type; sums are float64 and accumulation is at
  least float32.
* The same input gives the same bits.
"""

from __future__ import annotations

import functools
import importlib
import os
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class KernelMap(NamedTuple):
    """Which input row each tap meets at each output row.

    Attributes
    ----------
    tensors : tuple of Tensor
        The set's own form. ``reference`` has the table (rows, taps) int32 of input rows, -1 where
        there is none; ``cpu`` keeps lists of pairs by block and tap; ``cuda`` the table with its
        rows in the order of their taps, and lists of taps by tile.
        An empty tuple is the identity with a single tap, as linear layers have it.
    rows : int
        Number of output rows.
    taps : int
        K.
    """

    tensors: tuple[Tensor, ...]
    rows: int
    taps: int


class Connection(NamedTuple):
    """The kernel map of a convolution and the one of its input gradient.

    Attributes
    ----------
    forward, backward : KernelMap
        From input to output sites, and from output to input sites.
    mirrored : bool
        Tap k forward is tap K - 1 - k backward (odd kernels); otherwise it is tap k (kernel 2).
        A submanifold convolution has the same map both ways.
    """

    forward: KernelMap
    backward: KernelMap
    mirrored: bool

    def check(self, rows: int, taps: int) -> None:
        """Raise ValueError unless the maps take so many input rows and taps."""
        if rows != self.backward.rows:
            raise ValueError(
                f"the kernel map takes {self.backward.rows} rows, the input has {rows}"
            )
        if taps != self.forward.taps:
            raise ValueError(f"the weights have {taps} taps, the kernel map {self.forward.taps}")


def identity(rows: int) -> Connection:
    """Connect each row with itself: the map of a linear layer."""
    same = KernelMap((), rows, 1)
    return Connection(same, same, False)


class Kernels(Protocol):
    """One set of kernels; each set is a module with these functions.

    A set may offer ``gradients``, which stands for ``input_gradient``, ``weight_gradient`` and
    ``statistics_gradient`` at once; ``cpu`` does, in one call. It may also offer classes
    ``Forward`` and ``Backward``, which stand for those in ``tape`` and ``node`` and run many layers
    at once.
    """

    def sort_sites(self, sites: Tensor, spatial_size: int) -> tuple[Tensor, Tensor]:
        """Sort sites by their Morton keys.

        Parameters
        ----------
        sites : Tensor
            (N, 1 + dim) int32, the batch index first.
        spatial_size : int
            Voxels a side; the finest level has ``axis_bits(spatial_size)`` bits an axis.

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
        ...

    def submanifold_map(
        self, keys: Tensor, dim: int, kernel_size: int, spatial_size: int
    ) -> Connection:
        """Connect the sites of a level with each other, for an odd, centred kernel."""
        ...

    def strided_map(self, keys: Tensor, dim: int) -> tuple[Tensor, Connection]:
        """Connect sites with their parents for kernel 2 and stride 2.

        Returns
        -------
        coarse : Tensor
            (M,) int64 keys of the parents, ``keys >> dim`` without repetition.
        down : Connection
            Forward from children to parents; the inverse convolution swaps the two maps.
        """
        ...

    def ordinary_map(
        self, keys: Tensor, dim: int, kernel_size: int, spatial_size: int
    ) -> tuple[Tensor, Connection]:
        """Connect sites with every site that an odd, centred kernel reaches; its keys first."""
        ...

    def convolve(
        self,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        kernel_map: KernelMap,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        statistics: bool,
    ) -> tuple[Tensor, Tensor]:
        """Convolve, add the residual, and sum up the result for the norm that follows.

        Returns
        -------
        out : Tensor
            (rows, C_out), the residual included.
        sums : Tensor
            (2, C_out) float64: the sums over rows of ``out`` and of its squares; (0,) where
            ``statistics`` is false.
        """
        ...

    def input_gradient(
        self,
        grad: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        mirrored: bool,
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Propagate the gradient of ``out`` to the inputs.

        ``kernel_map`` is the backward one. With norm, let g be the gradient of
        ``scale * x + shift``, that is the convolved gradient where the ReLU lets through.

        Returns
        -------
        to_x, to_skip : Tensor
            Gradients of the two sources, ``scale * g`` (or g where there is no norm);
            ``to_skip`` is (0,) without ``skip``.
        sums : Tensor
            (2, C_in) float64: the gradients of ``scale`` (sum of g * x) and of ``shift``
            (sum of g); (0,) without norm.
        """
        ...

    def weight_gradient(
        self,
        x: Tensor,
        skip: Tensor | None,
        grad: Tensor,
        kernel_map: KernelMap,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        """Return the gradient of the weights, (K, C_in, C_out), over the forward map."""
        ...

    def statistics_gradient(self, grad: Tensor, out: Tensor, grad_sums: Tensor) -> Tensor:
        """Return ``grad + grad_sums[0] + 2 * out * grad_sums[1]``, what reaches ``out`` in all."""
        ...

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the norm of a batch into scale and shift, and move the running ones in place.

        Parameters
        ----------
        sums : Tensor
            (2, C) float64, sums of the features and of their squares.
        weight, bias, running_mean, running_var : Tensor
            (C,) float32 (``reference``: any type).
        rows : int
            Number of sites, at least 2.
        eps, momentum : float
            As torch's batch normalisation has them.

        Returns
        -------
        scale, shift : Tensor
            (C,) of the type of ``weight``.
        moments : Tensor
            (2, C) float64: mean and inverse standard deviation, for the gradient.
        """
        ...

    def fold_gradient(
        self, to_norm: Tensor, weight: Tensor, moments: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the sums, the weight and the bias of a folded norm.

        ``to_norm`` is (2, C) float64, the gradients of scale and shift.
        """
        ...

    def inverted(self, order: Tensor) -> Tensor:
        """Return the place of each row in an order, (N,) int64 contiguous."""
        ...

    def take(self, rows: Tensor, order: Tensor, bias: Tensor | None) -> Tensor:
        """Put rows (N, C) in another order, (N,) int64, and add a bias (C,) to each."""
        ...


NAMES = ("auto", "reference", "cpu", "cuda")
COMPILED = "backends.sscn.cpu._kernels"
"""The compiled module of the ``cpu`` kernels."""
_OF_CPU = {torch.float32: "cpu", torch.bfloat16: "cpu.bf16"}


def is_compiled() -> bool:
    """Return whether the compiled module is there, without an import of it or of its package.

    ``importlib.util.find_spec`` of the module would import its package, which imports the module.
    """
    package = find_spec("backends.sscn.cpu")
    return (
        package is not None
        and PathFinder.find_spec(COMPILED, package.submodule_search_locations) is not None
    )


def choose(name: str, device: str, dtype: torch.dtype) -> str:
    """Return the kernel set that ``auto`` stands for, or check that ``name`` runs here.

    Of the C++ kernels those for the type: ``cpu`` or ``cpu.bf16``.

    Raises
    ------
    ValueError
        If the set does not exist or cannot run on the device in this type.
    """
    if name not in NAMES:
        raise ValueError(f"there is no kernel set {name!r}; choose one of {', '.join(NAMES)}")
    if name == "auto":
        if device == "cpu" and (dtype not in _OF_CPU or not is_compiled()):
            return "reference"
        if device == "cuda" and (dtype == torch.float64 or _without_triton()):
            return "reference"
        name = device
    if name == "cpu":
        if device != "cpu":
            raise ValueError(
                "the cpu kernels run on the CPU alone; use kernels=auto on other devices"
            )
        if dtype not in _OF_CPU:
            raise ValueError(
                "the cpu kernels compute in float32 and bf16 alone; use kernels=reference otherwise"
            )
        if not is_compiled():
            raise ValueError(
                "the cpu kernels are not built here; build them with `pip install -e .`, or use "
                "kernels=reference"
            )
        return _OF_CPU[dtype]
    if name == "cuda" and dtype == torch.float64:
        raise ValueError(
            "the cuda kernels compute in 32 and 16 bits; use kernels=reference for float64"
        )
    if name == "cuda" and (reason := _without_triton(device)):
        raise ValueError(f"the cuda kernels cannot run here: {reason}; use kernels=auto")
    return name


def _without_triton(device: str = "cuda") -> str:
    """Return why the Triton kernels cannot run on a device, empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device != "cuda" or not torch.cuda.is_available():
        return "they need an NVIDIA GPU, or TRITON_INTERPRET=1 to run slowly on the CPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "they need a GPU of compute capability 8.0 or more"
    return ""


@functools.cache
def load(name: str) -> Kernels:
    """Import a kernel set by its name; ``auto`` must have been resolved by ``choose``."""
    return importlib.import_module(f"backends.sscn.{name}")


def instructions(name: str) -> str:
    """Return the instruction set that a kernel set of C++ uses here, empty for the others."""
    return str(getattr(load(name), "instruction_set", str)())


def axis_bits(spatial_size: int) -> int:
    """Return the bits that a coordinate below ``spatial_size`` needs."""
    return max(spatial_size - 1, 0).bit_length()


def morton(sites: Tensor, bits: int) -> Tensor:
    """Interleave the bits of coordinates under the batch index: near sites get near keys.

    Parameters
    ----------
    sites : Tensor
        (N, 1 + dim) integers, the batch index first.
    bits : int
        Bits an axis; a level with half the spatial size has one less.

    Returns
    -------
    Tensor
        (N,) int64. The lowest ``dim`` bits are the tap (last axis fastest) by which a parent
        reaches the site; ``key >> dim`` is the key of the parent.
    """
    batch, *axes = sites.long().unbind(1)
    key = batch << (bits * len(axes))
    for bit in range(bits):
        for position, axis in enumerate(reversed(axes)):
            key = key | (((axis >> bit) & 1) << (bit * len(axes) + position))
    return key


def demorton(keys: Tensor, bits: int, dim: int) -> Tensor:
    """Undo ``morton``: (N, 1 + dim) int64 sites of keys."""
    columns = [keys >> (bits * dim)]
    for position in reversed(range(dim)):
        axis = torch.zeros_like(keys)
        for bit in range(bits):
            axis = axis | (((keys >> (bit * dim + position)) & 1) << bit)
        columns.append(axis)
    return torch.stack(columns, 1)
