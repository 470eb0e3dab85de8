"""The optimisers of a training: the study's Adam, and Muon, which makes more of each event.

Adam scales every number of a gradient by itself. Muon (K. Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/) takes the weights of a layer for what they are, a
matrix from inputs to outputs, and steps in all its directions alike: the singular values of the
averaged gradient are brought to about one. Norms and biases, which are no matrices, keep Adam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from backends import weights
from backends.contract import Kind
from backends.uresnet import Layer
from harness.errors import BadInput

OPTIMISERS = ("adam", "muon")

# The polynomial a x + b x^3 + c x^5, five times over, brings singular values to 0.7 ... 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MOMENTUM = 0.95
# Root mean square of an update in units of the rate; Adam's is 0.2 to 0.4 (arXiv:2502.16982).
_UPDATE = 0.6


def make(name: str, network: Any, rate: float) -> Optimizer:
    """Return an optimiser of a network's parameters.

    Parameters
    ----------
    name : str
        One of `OPTIMISERS`.
    network : Module
        As `backends.network.build` makes it.
    rate : float
        Learning rate; whoever changes it does so in every group of ``param_groups``.

    Raises
    ------
    BadInput
        If there is no such optimiser, or Muon is to train a network whose layers have no canonical
        names.
    """
    if name == "adam":
        return torch.optim.Adam(network.parameters(), rate, fused=True)
    if name != "muon":
        raise BadInput(f"there is no optimiser {name!r}; choose one of {', '.join(OPTIMISERS)}")
    if not hasattr(network, "layers"):
        raise BadInput("muon trains the common UResNet only; choose adam for this network")
    return Muon(network, rate)


class Muon(Optimizer):
    """Momentum with orthogonal steps for the weights of layers, Adam for all other parameters.

    Weights are taken in their canonical layout, so that engines step alike whatever their own.

    Parameters
    ----------
    network : backends.weights.Network
    rate : float
    """

    def __init__(self, network: Any, rate: float) -> None:
        self._backend = network.backend
        self._layers: list[tuple[Layer, Tensor]] = []
        for _, layer in network.layers():
            if layer.kind is not Kind.NORM:
                weight = self._backend.parameters(layer.native)["weight"]
                self._layers.append((layer, weight))
        matrices = [weight for _, weight in self._layers]
        known = {id(weight) for weight in matrices}
        others = [p for p in network.parameters() if id(p) not in known]
        super().__init__([{"params": matrices}, {"params": others}], {"lr": rate})
        self._adam = torch.optim.Adam(others, rate, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step from the gradients that the parameters have."""
        matrices, others = self.param_groups
        for group in self._adam.param_groups:
            group["lr"] = others["lr"]
        self._adam.step()
        averaged = [
            (layer, weight, *self._matrix(layer, self._averaged(weight)))
            for layer, weight in self._layers
            if weight.grad is not None
        ]
        for turned, (layer, weight, matrix, order) in zip(
            orthogonal([matrix for _, _, matrix, _ in averaged]), averaged, strict=True
        ):
            step = self._native(layer, weight, turned, order)
            rate = matrices["lr"] * _UPDATE * max(matrix.shape) ** 0.5
            weight.add_(step, alpha=-rate)

    def _averaged(self, weight: Tensor) -> Tensor:
        """Return the momentum after this step's gradient, looking one step ahead (Nesterov)."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
        return weight.grad.lerp(momentum, _MOMENTUM)

    def _matrix(self, layer: Layer, native: Tensor) -> tuple[Tensor, list[int]]:
        """Return values of a weight as (outputs, inputs) and the order its axes were taken in.

        Inputs may come in any order: the one they lie in memory spares a copy.
        """
        shape = weights.weight_shape(layer, self._backend.dim)
        canonical = self._backend.from_native(layer.kind, native).reshape(shape)
        out = 1 if layer.kind is Kind.INVERSE else 0  # (in, out, ...), unlike all others
        order = sorted(range(canonical.ndim), key=canonical.stride, reverse=True)
        order.remove(out)
        return canonical.permute(out, *order).flatten(1), [out, *order]

    def _native(self, layer: Layer, weight: Tensor, matrix: Tensor, order: list[int]) -> Tensor:
        """Undo `_matrix`."""
        shape = weights.weight_shape(layer, self._backend.dim)
        moved = matrix.reshape([shape[axis] for axis in order])
        canonical = moved.permute([order.index(axis) for axis in range(len(order))])
        return self._backend.to_native(layer.kind, canonical).reshape(weight.shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both parts."""
        return {"muon": super().state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state_dict["muon"])
        self._adam.load_state_dict(state_dict["adam"])


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return matrices with the same singular vectors and singular values of about one.

    The iteration of Newton and Schulz multiplies a matrix by polynomials of its Gram matrix; they
    are gathered first, for all matrices of as many outputs together, so that a large matrix is
    multiplied only twice.

    Parameters
    ----------
    matrices : sequence of Tensor
        (outputs, inputs), any numbers of both; quickest where outputs are fewer.

    Returns
    -------
    list of Tensor
        Of the same shapes and types; singular values below a thousandth of the largest one, and
        those of a matrix of zeros, stay well below one.
    """
    grams: dict[int, list[Tensor]] = {}
    for matrix in matrices:
        grams.setdefault(len(matrix), []).append(matrix @ matrix.mT)
    products = {outputs: iter(_polynomials(torch.stack(some))) for outputs, some in grams.items()}
    # Transposed twice: a product of the memory order of its factors.
    return [(matrix.mT @ next(products[len(matrix)])).mT for matrix in matrices]


def _polynomials(grams: Tensor) -> Tensor:
    """Return what brings the singular values of matrices to one, from their (n, C, C) products."""
    sizes = grams.diagonal(dim1=1, dim2=2).sum(1).clamp_(min=torch.finfo(torch.float32).tiny)
    grams = grams / sizes[:, None, None]
    one = torch.eye(grams.shape[1], dtype=grams.dtype, device=grams.device)
    products = one * sizes.rsqrt()[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        factors = torch.baddbmm(a * one + b * grams, grams, grams, alpha=c)
        products = factors @ products
        grams = factors @ grams @ factors
    return products
