"""Prediction of the labels of many events in bounded memory, in parts that survive a kill."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends import network, registry, weights
from backends.arithmetic import autocast
from backends.contract import master_dtype
from backends.weight_files import network_size
from harness.accuracy.classification import Accuracy, confusion_matrix, nonzero_accuracy
from harness.errors import BadInput
from harness.events import Event, EventSet, collate
from harness.events.classes import CLASS_NAMES
from harness.events.predictions import Labels, Probabilities, write_predictions
from harness.events.track_shower import track_or_shower
from harness.files import check_target, make_folder, write_bytes, write_text
from harness.run.plan import network_in_words, unavailable_reason
from harness.run.weight_files import find_weights, read_weights
from harness.run.workload import sparse_batch
from harness.spec.cell import Cell
from harness.spec.network import find_network
from harness.spec.suite import parse_engine

SETTINGS = "settings.json"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Predictor:
    """A trained network on an engine.

    Attributes
    ----------
    engine : str
        Name of the engine.
    weights : str
        Name of the file of weights with its hash.
    precision, device : str
        As for ``harness.spec.cell.Cell``.
    network : Module
        As ``backends.network.build`` returns it.
    classes : int
        Number of classes.
    dim : int
        Spatial dimensions of the network.
    inputs : int
        Features per voxel.
    """

    engine: str
    weights: str
    precision: str
    device: str
    network: Any
    classes: int
    dim: int
    inputs: int

    @classmethod
    def load(
        cls,
        engine: str,
        options: Mapping[str, str],
        path: Path,
        label: str,
        *,
        device: str,
        precision: str,
    ) -> Predictor:
        """Load the network of a file of weights onto an engine.

        Parameters
        ----------
        engine : str
            Name of the engine.
        options : mapping
            Its options.
        path : Path
            File of canonical weights.
        label : str
            Name of the weights for the attributes of the predictions.
        device, precision : str
            As for ``harness.spec.cell.Cell``.

        Raises
        ------
        BadInput
            If the engine cannot run this network here.
        """
        values = read_weights(path)
        config, dim = network_size(values)
        try:
            backend = registry.load(
                engine, dim=dim, device=device, precision=precision, options=dict(options)
            )
            built = network.build(backend, config).to(device, master_dtype(precision))
            if not network.has_reference(built):
                raise BadInput(f"{engine} has a network of its own, which takes no weights")
        except (ImportError, ValueError) as error:
            raise BadInput(f"{engine} cannot predict here: {error}") from None
        weights.load(built, values)
        sizes = config.classes, dim, config.in_channels
        return cls(engine, label, precision, device, built.eval(), *sizes)

    def probabilities(self, events: list[Event]) -> list[Probabilities]:
        """Return the class probabilities of the voxels of some events, which share one batch."""
        held = [event for event in events if len(event)]
        found: Iterator[Probabilities] = iter(())
        if held:
            batch = sparse_batch(collate(held, inputs=self.inputs)).to(self.device)
            features = batch.features.to(master_dtype(self.precision))
            with torch.no_grad(), autocast(self.precision, self.device):
                made = self.network.tensor(
                    batch.sites, features, batch.spatial_size, batch.batch_size
                )
                logits = self.network(made)
            rows = logits.float().softmax(1).cpu().numpy()
            found = iter(np.split(rows, np.cumsum([len(event) for event in held])[:-1]))
        empty = np.zeros((0, self.classes), np.float32)
        return [next(found) if len(event) else empty for event in events]


def find_predictor(
    engine: str, weights: str, *, network: str = "", batch: int, device: str, precision: str
) -> Predictor:
    """Return the network of some weights on an engine, or say why it cannot run here.

    Parameters
    ----------
    engine : str
        ``NAME`` or ``NAME:OPTION=VALUE``.
    weights : str
        ``trained`` or a file of weights.
    network : str
        As for ``harness.spec.network.find_network``; that of the weights if empty.
    batch : int
        Events per forward pass.
    device, precision : str
        As for ``harness.spec.cell.Cell``.

    Raises
    ------
    BadInput
        If the engine cannot run this network here, or the weights cannot be used.
    """
    name, options = parse_engine(engine)
    registry.module_name(name)
    found = find_weights(weights)
    if found is None:
        raise BadInput("random weights label nothing right; give a file of weights")
    model = find_network(network) if network else found.model
    if model != found.model:
        raise BadInput(
            f"{found.path} has the weights of {network_in_words(found.model, found.dim)}, not of "
            f"{network_in_words(model, found.dim)}; leave out --network"
        )
    python = registry.interpreter(name)
    if Path(python) != Path(sys.executable):
        raise BadInput(f"{name} is installed for {python}; run this command with that Python")
    cell = Cell(
        *("predict", name, 2**20, batch, "forward", "cold"),
        device=device,
        precision=precision,
        dim=found.dim,
        options=options,
        model=model,
    )
    reason = unavailable_reason(cell, registry.probe(name))
    if reason:
        raise BadInput(f"cannot predict: {reason}")
    return Predictor.load(
        name, options, found.path, found.label, device=device, precision=precision
    )


def predict(
    predictor: Predictor, events: EventSet, out: Path, batch: int, progress: Progress
) -> Accuracy | None:
    """Predict the labels of all events, and write them to a file.

    Parts of a batch each are kept beside the file until it is complete; a repeated call with the
    same events, network and batch continues after the last part.

    Parameters
    ----------
    predictor : Predictor
        The network.
    events : EventSet
        Events of one size.
    out : Path
        The file, as ``harness.events.predictions`` describes it.
    batch : int
        Events per forward pass.
    progress : callable
        Called with the number of predicted events after every batch.

    Returns
    -------
    Accuracy or None
        None if no event has a label of the network's classes.

    Raises
    ------
    BadInput
        If the events have another dimension than the network, or the file cannot be written.
    """
    check_target(out, "--out")
    parts = out.with_name(f".{out.name}.parts")
    settings = {
        "events_sha256": events.sha256,
        "events": events.name,
        "weights": predictor.weights,
        "engine": predictor.engine,
        "precision": predictor.precision,
    }
    _prepare(parts, settings | {"batch": batch})
    starts = range(0, len(events), batch)
    for number, start in enumerate(starts):
        stop = min(start + batch, len(events))
        path = parts / f"{number:08d}.npy"
        if not path.exists():
            some = [events[index] for index in range(start, stop)]
            if any(event.dim != predictor.dim for event in some):
                raise BadInput(
                    f"{events.name} has events in {some[0].dim}D and {predictor.weights} is a "
                    f"network in {predictor.dim}D; give other weights"
                )
            _write_part(path, predictor.probabilities(some))
        progress(stop)
    accuracies: list[NDArray[np.int64]] = []

    def rows() -> Iterator[tuple[Labels, Probabilities]]:
        for number, start in enumerate(starts):
            chances = np.load(parts / f"{number:08d}.npy")
            position = 0
            for index in range(start, min(start + batch, len(events))):
                event = events[index]
                own = chances[position : position + len(event)]
                position += len(event)
                labels = own.argmax(1).astype(np.uint8)
                truth = track_or_shower(event) if predictor.classes == 2 else event
                accuracies.append(confusion_matrix(truth.labels, labels, predictor.classes))
                yield labels, own

    write_predictions(out, rows(), predictor.classes, settings)
    shutil.rmtree(parts)
    return _accuracy(accuracies) if predictor.classes in CLASS_NAMES else None


def _prepare(parts: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of the parts; remove parts of other settings."""
    text = json.dumps(settings, sort_keys=True) + "\n"
    path = parts / SETTINGS
    if path.is_file() and path.read_text(errors="replace") == text:
        return
    if parts.is_dir():
        shutil.rmtree(parts)
    make_folder(parts, "--out")
    write_text(path, text, "--out")


def _write_part(path: Path, found: list[Probabilities]) -> None:
    import io

    content = io.BytesIO()
    np.save(content, np.concatenate(found))
    write_bytes(path, content.getvalue(), "--out")


def _accuracy(matrices: list[NDArray[np.int64]]) -> Accuracy | None:
    held = [matrix for matrix in matrices if matrix.sum()]
    if not held:
        return None
    shares = np.array([nonzero_accuracy(matrix) for matrix in held])
    return Accuracy(shares, np.sum(held, axis=0))
