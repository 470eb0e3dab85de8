"""One engine on a sequence of different events, in one process and each in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass

import torch

from backends import cases, registry, weights
from backends.loss import event_cross_entropy


def other_sites(dim):
    """As many sites as ``random_sites`` has, in the same volume, elsewhere."""
    sites = [cases.scattered(150, 16, dim, seed=7), cases.scattered(90, 16, dim, event=1, seed=7)]
    return cases.batch_of(torch.cat(sites), 16, 2, seed=7)


def large_volume(dim):
    """A single event in a volume of another size."""
    return cases.batch_of(cases.scattered(200, 40, dim, seed=3), 40, 1, seed=3)


BATCHES = cases.CASES | {each.__name__: each for each in (other_sites, large_volume)}


@dataclass(frozen=True)
class Item:
    """A call of a sequence.

    Attributes
    ----------
    phase : str
        ``forward``, ``step``, ``warm`` (other features on the tensor of an earlier forward pass)
        or ``interleaved`` (two forward passes before their two backward passes).
    batch : str
        Its batch.
    second : str
        The second batch of ``interleaved``.
    """

    phase: str
    batch: str
    second: str = ""

    @property
    def name(self):
        """Name of the file of its results."""
        return f"{self.phase}-{self.batch}"


SEQUENCE = (
    Item("forward", "random_sites"),
    Item("step", "large_volume"),
    Item("forward", "other_sites"),
    Item("step", "random_sites"),
    Item("warm", "random_sites"),
    Item("forward", "empty_members"),
    Item("interleaved", "other_sites", "odd_size"),
    Item("forward", "large_volume"),
    Item("step", "full_block"),
    Item("interleaved", "random_sites", "other_sites"),
    Item("step", "empty_members"),
    Item("warm", "other_sites"),
    Item("forward", "odd_size"),
    Item("step", "other_sites"),
    Item("forward", "faces_and_corners"),
    Item("forward", "random_sites"),
)
"""Sizes and batches alternate; some batches return, and two have the same number of sites."""


class Runner:
    """A network on one engine that computes items one after the other.

    Parameters
    ----------
    backend : Backend
        The engine.
    dim : int
        Spatial dimensions.
    """

    def __init__(self, backend, dim):
        self.dim = dim
        self.values = cases.weights_without_jumps(cases.SMALL, dim)
        self.network = cases.network_on(backend, cases.SMALL, self.values)
        self.kept = {}

    def run(self, item):
        """Return the tensors that an item results in, by name."""
        weights.load(self.network, self.values)  # a step moves the running statistics
        return getattr(self, item.phase)(*filter(None, (item.batch, item.second)))

    def forward(self, name):
        """Compute logits, and keep the tensor."""
        batch = BATCHES[name](self.dim)
        self.network.eval()
        with torch.no_grad():
            self.kept[name] = cases.tensor_of(self.network, batch)
            return {"logits": self.network(self.kept[name])}

    def warm(self, name):
        """Compute logits of other features on a kept tensor."""
        if name not in self.kept:
            self.forward(name)
        batch = BATCHES[name](self.dim).to(self.network.backend.device)
        self.network.eval()
        with torch.no_grad():
            x = self.network.backend.with_features(self.kept[name], batch.features.flip(0))
            return {"logits": self.network(x)}

    def step(self, name):
        """Compute logits, gradients and running statistics."""
        found = cases.step(self.network, BATCHES[name](self.dim))
        return {"logits": found.logits, **found.gradients, **found.statistics}

    def interleaved(self, *names):
        """Compute two forward passes, then their gradients."""
        self.network.train()
        losses, found = [], {}
        for name in names:
            batch = BATCHES[name](self.dim)
            logits = self.network(cases.tensor_of(self.network, batch))
            found[f"logits of {name}"] = logits
            moved = batch.to(self.network.backend.device)
            losses.append(
                event_cross_entropy(logits, moved.labels, moved.sites[:, 0], moved.batch_size)
            )
        for name, loss in zip(names, losses, strict=True):
            self.network.zero_grad(set_to_none=True)
            loss.backward()
            gradients = weights.gradients(self.network)
            found |= {f"{key} of {name}": value.clone() for key, value in gradients.items()}
        return found


def detached(found):
    """Copy results out of the graph and off the device."""
    return {name: value.detach().cpu().clone() for name, value in found.items()}


def alone(item):
    """Divide an item into the items whose results a fresh process has to give."""
    if item.phase != "interleaved":
        return {"": item}
    return {name: Item("step", name) for name in (item.batch, item.second)}


def single_items():
    """List the items that are computed in fresh processes."""
    return sorted({part for item in SEQUENCE for part in alone(item).values()}, key=repr)


def save(found, folder, name):
    """Write results to a file."""
    torch.save(found, f"{folder}/{name}.pt")


def main(engine, device, dim, folder, only=None):
    """Save the results of the sequence, and of each item in a process without an earlier call.

    On the CPU these processes are forked after the import; a GPU cannot be used after a fork.
    """
    torch.set_num_threads(1)
    backend = registry.load(engine, dim=int(dim), device=device, precision="fp32")
    for number, item in enumerate(single_items()):
        if only is None and device != "cpu":
            command = [sys.executable, "-m", "tests.backends.event_sequence"]
            subprocess.run([*command, engine, device, dim, folder, str(number)], check=True)
            continue
        if only not in (None, str(number)):
            continue
        child = os.fork() if only is None else 0
        if not child:
            save(detached(Runner(backend, int(dim)).run(item)), folder, item.name)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{item} alone failed")
    runner = Runner(backend, int(dim))
    save([detached(runner.run(item)) for item in SEQUENCE], folder, "sequence")


if __name__ == "__main__":
    main(*sys.argv[1:])
