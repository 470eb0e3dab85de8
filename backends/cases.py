"""Batches that engines get wrong, networks to run on them, and one function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from backends import weights
from backends.arithmetic import autocast
from backends.contract import Backend, SparseBatch, master_dtype
from backends.float64_reference import Reference, compute_reference, running_statistics
from backends.loss import event_cross_entropy
from backends.uresnet import UResNet, UResNetConfig
from backends.weights import Weights

SMALL = UResNetConfig(filters=4, depth=3, reps=1)


def batch_of(sites: Any, size: int, events: int, seed: int = 0) -> SparseBatch:
    """Make a batch of the given sites with random energies and labels."""
    generator = torch.Generator().manual_seed(seed)
    sites = torch.as_tensor(sites, dtype=torch.int32).contiguous()
    return SparseBatch(
        sites,
        torch.rand(len(sites), 1, generator=generator) + 0.1,
        torch.randint(0, 5, (len(sites),), generator=generator),
        size,
        events,
    )


def scattered(count: int, size: int, dim: int, event: int = 0, seed: int = 0) -> Tensor:
    """Draw different sites of one event, in random order."""
    generator = torch.Generator().manual_seed(seed + 1000 * event)
    number = torch.randperm(size**dim, generator=generator)[:count]
    columns = [number // size ** (dim - 1 - axis) % size for axis in range(dim)]
    return torch.stack([torch.full_like(number, event), *columns], 1)


def random_sites(dim: int) -> SparseBatch:
    """Two events with sites at random places."""
    return batch_of(torch.cat([scattered(150, 16, dim), scattered(90, 16, dim, event=1)]), 16, 2)


def full_block(dim: int) -> SparseBatch:
    """An event with every site of a 3x3x3 block, beside scattered ones."""
    block = torch.cartesian_prod(*[torch.arange(6, 9)] * dim)
    block = torch.cat([torch.zeros_like(block[:, :1]), block], 1)
    sites = torch.unique(torch.cat([block, scattered(60, 16, dim)]), dim=0)
    shuffled = sites[torch.randperm(len(sites), generator=torch.Generator().manual_seed(5))]
    return batch_of(shuffled, 16, 1)


def empty_members(dim: int) -> SparseBatch:
    """Events 0, 2 and 4 of a batch of five have no site."""
    events = [scattered(80, 16, dim, event) for event in (1, 3)]
    return batch_of(torch.cat(events), 16, 5)


def faces_and_corners(dim: int) -> SparseBatch:
    """Every corner of the volume, and sites on each of its faces."""
    corners = torch.cartesian_prod(*[torch.tensor([0, 15])] * dim)
    faces = []
    for axis in range(dim):
        for end in (0, 15):
            face = scattered(20, 16, dim, seed=axis + end)[:, 1:]
            face[:, axis] = end
            faces.append(face)
    sites = torch.unique(torch.cat([corners, *faces]), dim=0)
    return batch_of(torch.cat([torch.zeros_like(sites[:, :1]), sites], 1), 16, 1)


def odd_size(dim: int) -> SparseBatch:
    """A volume that no stride divides, with sites at its far end."""
    sites = torch.cat([scattered(120, 13, dim), torch.tensor([[1] + [12] * dim, [1] + [0] * dim])])
    return batch_of(sites, 13, 2)


def wide_volume(dim: int) -> SparseBatch:
    """Two tracks and scattered sites in a volume in which seven levels have several sites each."""
    steps = torch.arange(256)
    events = []
    for event, ends in enumerate(([steps, steps, 255 - steps], [steps, 255 - steps, steps // 2])):
        track = torch.stack([torch.full_like(steps, event), *ends[:dim]], 1)
        events += [track, scattered(150, 256, dim, event)]
    return batch_of(torch.unique(torch.cat(events), dim=0), 256, 2)


def one_site(dim: int) -> SparseBatch:
    """An event of a single site; a norm has no variance for it in training."""
    return batch_of([[0] + [7] * dim], 16, 1)


CASES: dict[str, Callable[[int], SparseBatch]] = {
    case.__name__: case
    for case in (random_sites, full_block, empty_members, faces_and_corners, odd_size)
}


def weights_without_jumps(config: UResNetConfig, dim: int, seed: int = 0) -> Weights:
    """Draw weights with which no input of a ReLU is near zero.

    Norms shift their channels by 2 or -2 and scale them by a tenth, so that rounding changes no
    sign of an input. Gradients then have no jumps, and can be compared with narrow bounds.
    """
    values = weights.initial(config, dim, seed)
    for name in values:
        if name.endswith(".running_var"):
            norm = name.removesuffix("running_var")
            signs = torch.ones_like(values[norm + "bias"])
            signs[::3] = -1
            values[norm + "bias"] = 2 * signs
            values[norm + "weight"] = 0.1 * values[norm + "weight"]
    return values


@dataclass
class Result:
    """Results of a network."""

    logits: Tensor
    loss: Tensor | None = None
    gradients: Mapping[str, Tensor] | None = None
    statistics: Mapping[str, Tensor] | None = None


def network_on(backend: Backend, config: UResNetConfig, values: Mapping[str, Tensor]) -> UResNet:
    """Build the UResNet on an engine with the given weights."""
    network = UResNet(backend, config).to(backend.device, master_dtype(backend.precision))
    weights.load(network, values)
    return network


def tensor_of(network: UResNet, batch: SparseBatch) -> Any:
    """Make the engine's tensor."""
    backend = network.backend
    batch = batch.to(backend.device)
    features = batch.features.to(master_dtype(backend.precision))
    return network.tensor(batch.sites, features, batch.spatial_size, batch.batch_size)


def forward(network: UResNet, batch: SparseBatch) -> Result:
    """Run inference."""
    network.eval()
    with torch.no_grad(), autocast(network.backend.precision, network.backend.device):
        return Result(network(tensor_of(network, batch)))


def step(network: UResNet, batch: SparseBatch, x: Any = None) -> Result:
    """Run forward and backward in training mode."""
    network.train()
    network.zero_grad(set_to_none=True)
    with autocast(network.backend.precision, network.backend.device):
        logits = network(tensor_of(network, batch) if x is None else x)
    moved = batch.to(network.backend.device)
    assert moved.labels is not None
    loss = event_cross_entropy(logits, moved.labels, moved.sites[:, 0], moved.batch_size)
    torch.autograd.backward(loss)
    return Result(logits, loss, weights.gradients(network), running_statistics(network))


@cache
def with_reference(
    case: str, dim: int, config: UResNetConfig, phase: str, without_jumps: bool = True
) -> tuple[SparseBatch, Weights, Reference]:
    """Return a case's batch, weights and reference, computed once a session."""
    special = {each.__name__: each for each in (one_site, wide_volume)}
    batch = (special | CASES)[case](dim)
    roots = [batch.features ** (1 / degree) for degree in range(1, config.in_channels + 1)]
    assert batch.labels is not None
    batch = replace(batch, features=torch.cat(roots, 1), labels=batch.labels % config.classes)
    values = weights_without_jumps(config, dim) if without_jumps else weights.initial(config, dim)
    return batch, values, compute_reference(config, values, batch, step=phase == "step")
