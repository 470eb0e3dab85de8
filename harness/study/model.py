"""The network of a training on its engine: construction, prediction and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends import network, registry, weights
from backends.arithmetic import autocast
from backends.contract import Backend, SparseBatch
from harness.accuracy.classification import Accuracy, measure_accuracy
from harness.events import Event, EventSet, collate
from harness.run.workload import uresnet_config
from harness.study.plan import Plan


@dataclass(frozen=True)
class Model:
    """A network with its engine.

    An engine with a network of its own gives that network no reference to the engine, whose device
    and precision every forward pass needs.

    Attributes
    ----------
    network : Module
        As ``backends.network.build`` returns it.
    backend : Backend
        The engine.
    classes : int
        Number of outputs per voxel.
    inputs : int
        Features per voxel.
    """

    network: Any
    backend: Backend
    classes: int
    inputs: int

    def logits(self, batch: SparseBatch) -> Tensor:
        """Return the outputs of the network, shape (N, classes)."""
        with autocast(self.backend.precision, self.backend.device):
            made = self.network.tensor(
                batch.sites, batch.features, batch.spatial_size, batch.batch_size
            )
            logits: Tensor = self.network(made)
        return logits


def build_model(plan: Plan) -> Model:
    """Return the network of a plan on its engine, with the initial weights of its seed."""
    config = uresnet_config(plan.model)
    dim = plan.events.dim
    backend = registry.load(
        plan.backend,
        dim=dim,
        device=plan.device,
        precision=plan.precision,
        options=dict(plan.options),
    )
    built = network.build(backend, config).to(plan.device)
    network.reset(built, weights.initial(config, dim, plan.seed))
    return Model(built, backend, config.classes, config.in_channels)


def predict(model: Model, events: Sequence[Event], batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield the predicted class of every voxel, one array per event.

    Empty events give empty arrays. The network remains in evaluation mode: its norms use the
    statistics of the training.
    """
    model.network.eval()
    for start in range(0, len(events), batch):
        some = [events[i] for i in range(start, min(start + batch, len(events)))]
        joined = collate(some, inputs=model.inputs)
        if not len(joined["sites"]):
            yield from (np.zeros(0, np.int64) for _ in some)
            continue
        with torch.no_grad():
            logits = model.logits(sparse_batch(joined, model.backend.device))
        yield from split_by_event(joined, logits.argmax(1).cpu().numpy())


def evaluate(model: Model, events: EventSet, batch: int) -> Accuracy:
    """Return the accuracy of a network on held-out events."""
    truths = [event.labels.astype(np.int64) for event in events]
    return measure_accuracy(truths, list(predict(model, events, batch)), model.classes)


def sparse_batch(batch: dict[str, Any], device: str) -> SparseBatch:
    """Return a batch of arrays as tensors on a device."""
    arrays = (np.ascontiguousarray(batch[name]) for name in ("sites", "features", "labels"))
    sites, features, labels = map(torch.from_numpy, arrays)
    tensors = SparseBatch(sites, features, labels, batch["spatial_size"], batch["batch_size"])
    return tensors.to(device)


def split_by_event(batch: dict[str, Any], values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split an array over all sites of a batch into one array per event."""
    edges = np.searchsorted(batch["sites"][:, 0], np.arange(1, batch["batch_size"]))
    return np.split(values, edges)
