"""Optimisers of a training: Adam, as in the 2018 study, and Muon, which needs fewer events.

Adam scales each element of a gradient separately. Muon (K. Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/) treats the weights of a layer as a matrix from inputs
to outputs and orthogonalises the averaged gradient: all its singular values become about one.
Norms and biases are not matrices and are updated with Adam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from backends import weights
from backends.contract import Kind
from backends.uresnet import EngineLayer
from harness.errors import BadInput

OPTIMISERS = ("adam", "muon")

# Five iterations of the polynomial a x + b x^3 + c x^5 bring singular values to 0.7 ... 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MOMENTUM = 0.95
# Root mean square of an update in units of the learning rate; 0.2 to 0.4 for Adam
# (arXiv:2502.16982).
_UPDATE = 0.6


def make_optimiser(name: str, network: Any, rate: float) -> Optimizer:
    """Return an optimiser of the parameters of a network.

    Parameters
    ----------
    name : str
        One of ``OPTIMISERS``.
    network : Module
        As ``backends.network.build`` returns it.
    rate : float
        Learning rate. To change it, set ``lr`` in every group of ``param_groups``.

    Raises
    ------
    BadInput
        If there is no such optimiser, or if Muon is requested for a network whose layers have no
        canonical names.
    """
    if name == "adam":
        return torch.optim.Adam(network.parameters(), rate, fused=True)
    if name != "muon":
        raise BadInput(f"there is no optimiser {name!r}; choose one of {', '.join(OPTIMISERS)}")
    if not hasattr(network, "layers"):
        raise BadInput("muon trains the common UResNet only; choose adam for this network")
    return Muon(network, rate)


class Muon(Optimizer):
    """Orthogonalised momentum for the weights of layers, Adam for all other parameters.

    Updates are computed in the canonical layout of the weights, so that they do not depend on the
    layout of an engine.

    Parameters
    ----------
    network : backends.weights.Network
        The network in training.
    rate : float
        Learning rate.
    """

    def __init__(self, network: Any, rate: float) -> None:
        self._backend = network.backend
        self._layers: list[tuple[EngineLayer, Tensor]] = []
        for _, layer in network.layers():
            if layer.kind is not Kind.NORM:
                weight = self._backend.parameters(layer.native)["weight"]
                self._layers.append((layer, weight))
        matrices = [weight for _, weight in self._layers]
        identities = {id(weight) for weight in matrices}
        others = [p for p in network.parameters() if id(p) not in identities]
        super().__init__([{"params": matrices}, {"params": others}], {"lr": rate})
        self._adam = torch.optim.Adam(others, rate, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, no loss
        """Update the parameters from their gradients."""
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
        """Return the Nesterov momentum after the gradient of this step."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
        averaged: Tensor = weight.grad.lerp(momentum, _MOMENTUM)
        return averaged

    def _matrix(self, layer: EngineLayer, native: Tensor) -> tuple[Tensor, list[int]]:
        """Return a weight as a matrix (outputs, inputs), and the order of its axes in it.

        The order of the inputs is that of the memory, which avoids a copy.
        """
        shape = weights.weight_shape(layer, self._backend.dim)
        canonical = self._backend.from_native(layer.kind, native).reshape(shape)
        out = 1 if layer.kind is Kind.INVERSE else 0  # (in, out, ...), unlike all others
        order = sorted(range(canonical.ndim), key=canonical.stride, reverse=True)
        order.remove(out)
        return canonical.permute(out, *order).flatten(1), [out, *order]

    def _native(
        self, layer: EngineLayer, weight: Tensor, matrix: Tensor, order: list[int]
    ) -> Tensor:
        """Return the matrix of ``_matrix`` in the layout of the engine."""
        shape = weights.weight_shape(layer, self._backend.dim)
        moved = matrix.reshape([shape[axis] for axis in order])
        canonical = moved.permute([order.index(axis) for axis in range(len(order))])
        native: Tensor = self._backend.to_native(layer.kind, canonical)
        return native.reshape(weight.shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimisers."""
        return {"muon": super().state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` has returned."""
        super().load_state_dict(state_dict["muon"])
        self._adam.load_state_dict(state_dict["adam"])


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return matrices with the same singular vectors and with singular values of about one.

    The Newton-Schulz iteration multiplies a matrix by polynomials of its Gram matrix. The product
    of these polynomials is computed first, together for all matrices with the same number of
    outputs, so that each matrix takes part in two multiplications only.

    Parameters
    ----------
    matrices : sequence of Tensor
        Matrices of shape (outputs, inputs); fastest for fewer outputs than inputs.

    Returns
    -------
    list of Tensor
        Matrices of the same shapes and types. Singular values below a thousandth of the largest
        one, and those of a zero matrix, stay well below one.
    """
    grams: dict[int, list[Tensor]] = {}
    for matrix in matrices:
        grams.setdefault(len(matrix), []).append(matrix @ matrix.mT)
    products = {outputs: iter(_polynomials(torch.stack(some))) for outputs, some in grams.items()}
    # Transposed twice, so that the result has the memory order of its factors.
    return [(matrix.mT @ next(products[len(matrix)])).mT for matrix in matrices]


def _polynomials(grams: Tensor) -> Tensor:
    """Return the factors that orthogonalise matrices, from their (n, C, C) Gram matrices."""
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
