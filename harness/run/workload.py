"""The workload of a cell: a network on an engine with its events, to be called and checked."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import BadInput
from harness.events import benchmark_batch, open_events
from harness.events.batches import IGNORED
from harness.run.engine_interface import (
    TOLERANCE,
    Agreement,
    Backend,
    ChainConfig,
    ConvolutionChain,
    Kind,
    Reference,
    SparseBatch,
    UResNetConfig,
    autocast,
    build_network,
    compare,
    event_cross_entropy,
    finite,
    gradients,
    has_reference,
    initial_chain_weights,
    initial_weights,
    load_backend,
    load_weights,
    master_dtype,
    module_name,
    rel_rmse,
    reset_network,
    running_statistics,
    sorted_columns,
)
from harness.run.job import Job
from harness.run.weight_files import read_weights, weights_path
from harness.spec.cell import RANDOM, STACKS, Cell, ModelSpec

if TYPE_CHECKING:
    from harness.run.engine_interface import LayerCall, SingleLayerConfig

LEARNING_RATE = 1e-3
"""Learning rate of Adam, as in arXiv:1903.05663."""


def load_batch(cell: Cell, source: str) -> tuple[SparseBatch, int]:
    """Read the events of a cell.

    Parameters
    ----------
    cell : Cell
        Names the events of the set.
    source : str
        ``sample`` or the path of a file.

    Returns
    -------
    batch : SparseBatch
        On the CPU; for a single layer the sites of its level, with random features.
    skipped : int
        Number of empty events that were skipped.

    Raises
    ------
    BadInput
        If the events are not those that the cell names.
    """
    events = open_events(source, size=cell.size)
    if cell.events.sha256 and events.sha256 != cell.events.sha256:
        raise BadInput(
            f"{source} is not the set of events that the cell names (its SHA-256 differs); "
            f"give the right file with --events"
        )
    index = cell.events.index
    empty = 0
    if index is not None:
        empty = sum(not len(event) for event in events)
        events = events[index : index + 1]
    if cell.dim == 2:
        from harness.events.projection import ProjectedSet

        events = ProjectedSet(events, "xy")
    if cell.model.classes == 2:
        from harness.events.track_shower import TrackShowerSet

        events = TrackShowerSet(events)
    arrays, skipped = benchmark_batch(
        events, cell.batch, cell.events.seed, inputs=cell.model.inputs
    )
    labels = arrays["labels"]
    arrays["labels"] = np.where(labels < cell.model.classes, labels, IGNORED)
    batch = sparse_batch(arrays)
    if cell.layer:
        from harness.run.engine_interface import coarsened

        channels = layer_config(cell).fine
        batch = coarsened(batch, cell.layer_level, cell.model.depth, channels)
    return batch, empty + skipped


def sparse_batch(arrays: Mapping[str, Any]) -> SparseBatch:
    """Return a batch of arrays, as ``harness.events.collate`` makes it, as tensors on the CPU."""
    return SparseBatch(
        sites=torch.from_numpy(arrays["sites"]).to(torch.int32).contiguous(),
        features=torch.from_numpy(arrays["features"]).to(torch.float32).contiguous(),
        labels=torch.from_numpy(arrays["labels"]).to(torch.int64),
        spatial_size=arrays["spatial_size"],
        batch_size=arrays["batch_size"],
    )


class Workload:
    """A UResNet on one engine with canonical weights, and its events on the device.

    Parameters
    ----------
    job : Job
        Names the cell and the file of weights.
    batch : SparseBatch
        The events, on the CPU.
    """

    def __init__(self, job: Job, batch: SparseBatch) -> None:
        cell = self.cell = job.cell
        self.backend, self.version = load_engine(cell)
        dtype = master_dtype(cell.precision)
        if cell.phase in STACKS:
            self.weights = initial_chain_weights(stack_config(cell), cell.dim)
            built: Any = ConvolutionChain(self.backend, stack_config(cell))
        else:
            self.weights = canonical_weights(job)
            built = build_network(self.backend, uresnet_config(cell.model))
        self.network = built.to(cell.device, dtype)
        self.batch = batch.to(cell.device)
        self.features = self.batch.features.to(dtype)
        self._cached_tensor: Any = None
        self._last: tuple[Tensor, Tensor | None]
        self.reset()

    def reset(self) -> None:
        """Return to the canonical weights and a fresh optimiser."""
        reset_network(self.network, self.weights)
        self.network.train(self.cell.phase == "step")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)

    def call(self) -> Callable[[], Tensor]:
        """Return the timed function: from sites and features on the device to logits.

        For ``first`` and ``cold`` it makes a new tensor of the engine, so that every map is built
        inside the call; for ``warm`` it puts the features on a tensor whose maps exist.
        """
        if self.cell.map == "warm" and self._cached_tensor is None:
            self._cached_tensor = self._tensor()
            with torch.no_grad(), self._arithmetic():
                self.network(self._cached_tensor)
            self.reset()  # a pass in training mode moved the running statistics
        return self._step if self.cell.phase == "step" else self._forward

    def replace_input(self, batch: SparseBatch) -> None:
        """Replace the sites, features and labels by those of another batch of the same size.

        The tensors are overwritten in place: nothing that an engine finds by their addresses
        belongs to the new batch.
        """
        overwrite(self.batch, batch)
        if self.features is not self.batch.features:
            self.features.copy_(self.batch.features)

    def logits(self, batch: SparseBatch) -> Tensor:
        """Return the output for another batch in evaluation mode, outside the timed calls."""
        moved = batch.to(self.cell.device)
        features = moved.features.to(self.features.dtype)
        self.network.eval()
        with torch.no_grad(), self._arithmetic():
            made = self.network.tensor(moved.sites, features, moved.spatial_size, moved.batch_size)
            logits: Tensor = self.network(made)
        return logits

    @property
    def has_reference(self) -> bool:
        """Whether the network computes the function that the reference is known of."""
        return has_reference(self.network)

    def check(self, reference: Reference | None) -> tuple[Agreement, float | None]:
        """Compare the results of the last call with the reference.

        It must have been the only call since ``reset``: a step changes the weights.

        Parameters
        ----------
        reference : Reference or None
            None for a network of the engine's own, whose results must be finite.

        Returns
        -------
        agreement : Agreement
            Errors of the logits; for a step also of all gradients and running statistics.
        loss_error : float or None
            Relative error of the loss of a step.
        """
        logits, loss = self._last
        if self.cell.phase in STACKS:
            logits = sorted_columns(logits)
        if reference is None:
            found = [p.grad for p in self.network.parameters() if p.grad is not None]
            return finite(logits, found), None
        if loss is None or reference.loss is None:
            return compare(reference, self.cell.precision, logits), None
        agreement = compare(
            reference,
            self.cell.precision,
            logits,
            gradients=gradients(self.network),
            statistics=running_statistics(self.network),
        )
        return agreement, rel_rmse(loss, reference.loss)

    def last_labels(self) -> tuple[Tensor, Tensor]:
        """Return copies of the sites and logits of the last call, on the CPU."""
        return self.batch.sites.cpu().clone(), self._last[0].float().cpu().clone()

    def results(self, reference: Reference | None) -> dict[str, Any]:
        """Return further entries of the record about the result of the last call."""
        if self.cell.phase in STACKS:
            return {"active_sites": len(self._last[0])}
        if self.cell.phase != "forward" or self.cell.weights == RANDOM:
            return {}
        from harness.run.label_accuracy import label_accuracy  # needs SciPy

        expected = None if reference is None else reference.logits
        accuracy = label_accuracy(
            [self.batch], [self._last[0]], None if expected is None else [expected]
        )
        return {} if accuracy is None else {"accuracy": accuracy}

    def loss_tolerance(self) -> float:
        """Return the largest relative error of the loss that passes."""
        return TOLERANCE[self.cell.precision].forward

    def _tensor(self) -> Any:
        batch = self.batch
        return self.network.tensor(batch.sites, self.features, batch.spatial_size, batch.batch_size)

    def _input(self) -> Any:
        if self._cached_tensor is None:
            return self._tensor()
        return self.backend.with_features(self._cached_tensor, self.features)

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.cell.precision, self.cell.device)

    def _forward(self) -> Tensor:
        with torch.no_grad(), self._arithmetic():
            logits: Tensor = self.network(self._input())
        self._last = (logits, None)
        return logits

    def _step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self._arithmetic():
            logits: Tensor = self.network(self._input())
        batch = self.batch
        assert batch.labels is not None
        loss = event_cross_entropy(logits, batch.labels, batch.sites[:, 0], batch.batch_size)
        backward: Callable[[], None] = loss.backward  # torch leaves it without types
        backward()
        self.optimizer.step()
        self._last = (logits.detach(), loss.detach())
        return logits


class LayerWorkload:
    """A single convolution of one engine, on the sites of its level.

    It has the methods of ``Workload``. No call changes a weight.

    Parameters
    ----------
    cell : Cell
        With a ``layer``.
    batch : SparseBatch
        The sites of the level, on the CPU.
    """

    has_reference = True

    def __init__(self, cell: Cell, batch: SparseBatch) -> None:
        from harness.run.engine_interface import SingleLayer, initial_layer_weights

        self.cell = cell
        self.backend, self.version = load_engine(cell)
        config = layer_config(cell)
        dtype = master_dtype(cell.precision)
        self.single_layer = SingleLayer(self.backend, config).to(cell.device, dtype)
        load_weights(self.single_layer, initial_layer_weights(config, cell.dim))
        self.batch = batch.to(cell.device)
        self._layer_call: LayerCall | None = None

    def reset(self) -> None:
        """Do nothing: no call changes the state."""

    def call(self) -> Callable[[], Any]:
        """Return the timed function: one phase of the convolution, on the engine's own tensor."""
        from harness.run.engine_interface import LayerCall

        if self._layer_call is None:
            dtype = master_dtype(self.cell.precision)
            self._layer_call = LayerCall(
                self.single_layer,
                self.batch,
                self.batch.features.to(dtype),
                self.cell.phase,
                lambda: autocast(self.cell.precision, self.cell.device),
            )
        return self._layer_call

    def replace_input(self, batch: SparseBatch) -> None:
        """Replace the sites and features by those of another batch of the same size, in place.

        The next ``call`` prepares the phase anew where the timed function reads a map.
        """
        overwrite(self.batch, batch)
        if self.cell.phase == "map":
            assert self._layer_call is not None
            if self._layer_call.features is not self.batch.features:
                self._layer_call.features.copy_(self.batch.features)
        else:
            self._layer_call = None

    def check(self, reference: Reference | None) -> tuple[Agreement, float | None]:
        """Compare the result of the last call with the reference; there is no loss."""
        assert self._layer_call is not None and reference is not None
        found = compare(reference, self.cell.precision, self._layer_call.result())
        what = {"input-gradient": "input's gradient", "weight-gradient": "weights' gradient"}
        named = found.reason.replace("logits", what.get(self.cell.phase, "features"))
        return replace(found, reason=named), None

    def results(self, reference: Reference | None) -> dict[str, Any]:
        """Return no further entries."""
        return {}

    def loss_tolerance(self) -> float:
        """Return the largest relative error of a loss that passes."""
        return TOLERANCE[self.cell.precision].forward


def overwrite(batch: SparseBatch, other: SparseBatch) -> None:
    """Copy the tensors of one batch into those of another, which has as many sites."""
    batch.sites.copy_(other.sites)
    batch.features.copy_(other.features)
    if batch.labels is not None and other.labels is not None:
        batch.labels.copy_(other.labels)


def build_workload(job: Job, batch: SparseBatch) -> Workload | LayerWorkload:
    """Return the workload of a job: a network, or a single layer of it."""
    return LayerWorkload(job.cell, batch) if job.cell.layer else Workload(job, batch)


def canonical_weights(job: Job) -> dict[str, Tensor]:
    """Return the canonical weights of a job's UResNet.

    Raises
    ------
    BadInput
        If the file of weights is not the one that the cell names.
    """
    cell = job.cell
    if not job.weights:
        return initial_weights(uresnet_config(cell.model), cell.dim)
    path = weights_path(job.weights)
    content = path.read_bytes()
    if not cell.weights.endswith(f"@{hashlib.sha256(content).hexdigest()[:12]}"):
        raise BadInput(
            f"{job.weights} is not the file of weights that the cell names (its SHA-256 differs); "
            "give the right file with --weights"
        )
    return read_weights(path)


def load_engine(cell: Cell) -> tuple[Backend, str]:
    """Set up the engine of a cell, and return it with its version."""
    backend = load_backend(
        cell.backend,
        dim=cell.dim,
        device=cell.device,
        precision=cell.precision,
        options=dict(cell.options),
    )
    return backend, import_module(module_name(cell.backend)).probe().version


def layer_config(cell: Cell) -> SingleLayerConfig:
    """Return the size of a cell's single convolution."""
    from harness.run.engine_interface import SingleLayerConfig

    kind = Kind(cell.layer_kind)
    return SingleLayerConfig.of(uresnet_config(cell.model), kind, cell.layer_level, cell.phase)


def uresnet_config(model: ModelSpec) -> UResNetConfig:
    """Return the configuration of a UResNet.

    Raises
    ------
    ImportError
        If the engines are those of a commit whose UResNet lacks a setting.
    """
    values = model.to_json()
    if "inputs" in values:
        values["in_channels"] = values.pop("inputs")
    try:
        return UResNetConfig(**values)
    except TypeError:
        raise ImportError(f"the engines of this commit have no network {model.label}") from None


def stack_config(cell: Cell) -> ChainConfig:
    """Return the size of a cell's stack of convolutions."""
    return ChainConfig(Kind(cell.phase), cell.model.depth, cell.model.filters)


def reference_key(cell: Cell) -> Mapping[str, Any]:
    """Return the fields of a cell that its reference depends on: all but engine and map."""
    values = cell.to_json()
    names = ("dim", "size", "batch", "phase", "model", "weights", "events", "layer")
    return {name: values[name] for name in names if name in values}
