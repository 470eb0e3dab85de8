"""The float64 reference that the results of every engine are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backends import registry, weights
from backends.contract import Backend, SparseBatch
from backends.loss import event_cross_entropy
from backends.uresnet import UResNet, UResNetConfig
from backends.weights import Weights

DENSE_VOXELS = 2**16
"""Largest volume of a batch, in voxels (batch x size**dim), for the dense reference.

Dense convolutions in float64 on 2**16 voxels take about ten seconds with 16 filters in 3D. Larger
batches are computed by the plain-torch kernels of ``sscn`` in float64, which tests compare with the
dense convolutions.
"""


@dataclass(frozen=True)
class Reference:
    """Results of a UResNet in float64, on the CPU.

    Attributes
    ----------
    logits : Tensor
        (N, classes), rows in input order; those of training mode if the reference is of a step.
    loss : Tensor or None
        Scalar, the loss before the step; None without a step.
    gradients : mapping
        Canonical name -> gradient of the loss; empty without a step.
    statistics : mapping
        Canonical name -> running mean or variance after the forward pass in training mode; empty
        without a step.
    method : str
        ``dense`` or ``reference``.
    """

    logits: Tensor
    loss: Tensor | None
    gradients: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    method: str


def reference_method(batch: SparseBatch) -> str:
    """Return ``dense`` for a batch of at most ``DENSE_VOXELS``, otherwise ``reference``."""
    voxels = batch.batch_size * batch.spatial_size**batch.dim
    return "dense" if voxels <= DENSE_VOXELS else "reference"


def reference_backend(dim: int, device: str = "cpu") -> Backend:
    """Return ``sscn`` with its plain-torch kernels, in float64."""
    options = {"kernels": "reference"}
    return registry.load("sscn", dim=dim, device=device, precision="fp64", options=options)


def reference_network(
    config: UResNetConfig,
    values: Mapping[str, Tensor],
    dim: int,
    *,
    method: str,
    device: str = "cpu",
) -> UResNet:
    """Return the UResNet in float64 on the engine that computes the reference.

    Parameters
    ----------
    config : UResNetConfig
        The network.
    values : mapping
        Canonical weights.
    dim : int
        2 or 3.
    method : str
        ``dense`` or ``reference``.
    device : str
        ``cpu`` or ``cuda``.
    """
    if method == "dense":
        backend = registry.load("dense", dim=dim, device=device, precision="fp64")
    else:
        backend = reference_backend(dim, device)
    network = UResNet(backend, config).to(device, torch.float64)
    weights.load(network, values)
    return network


def compute_reference(
    config: UResNetConfig,
    values: Mapping[str, Tensor],
    batch: SparseBatch,
    *,
    step: bool,
    method: str | None = None,
    device: str = "cpu",
) -> Reference:
    """Compute the results of a UResNet in float64.

    Parameters
    ----------
    config : UResNetConfig
        The network.
    values : mapping
        Canonical weights.
    batch : SparseBatch
        The events; labels are needed for a step.
    step : bool
        False for the forward pass with running statistics (``eval``); True for the forward and
        backward passes of a training step.
    method : str, optional
        ``dense`` or ``reference``; by default ``dense`` within ``DENSE_VOXELS``.
    device : str
        Device of the computation; the results are on the CPU.
    """
    method = method or reference_method(batch)
    network = reference_network(config, values, batch.dim, method=method, device=device)
    batch = batch.to(device)
    x = network.tensor(batch.sites, batch.features.double(), batch.spatial_size, batch.batch_size)
    if not step:
        network.eval()
        with torch.no_grad():
            return Reference(network(x).cpu(), None, {}, {}, method)
    assert batch.labels is not None, "a step needs labels"
    network.train()
    logits = network(x)
    loss = event_cross_entropy(logits, batch.labels, batch.sites[:, 0], batch.batch_size)
    torch.autograd.backward(loss)
    return Reference(
        logits.detach().cpu(),
        loss.detach().cpu(),
        weights.gradients(network),
        running_statistics(network),
        method,
    )


def running_statistics(network: UResNet) -> Weights:
    """Return the running means and variances of a network in canonical layout, on the CPU."""
    return {
        name: value
        for name, value in weights.dump(network).items()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }
