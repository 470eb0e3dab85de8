"""Files of weights in several layouts."""

from __future__ import annotations

import copy
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends import weight_files, weights
from backends.capabilities import Unsupported
from backends.spine_checkpoints import to_spine
from backends.uresnet import UResNetConfig
from harness.errors import BadInput
from harness.run.weight_files import find_weights, read_weights
from tests.fuzz.format import Format
from tests.fuzz.mutations import VALUES, Rng, mutate_bytes, mutate_zip, pick

State = dict[Any, Any]

DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float64)


class Weights(Format):
    """A file of weights: changed entries, changed members of the archive, and changed bytes.

    Parameters
    ----------
    layout, suffix : str
        As for ``backends.weight_files``.
    """

    refusals = (weight_files.InvalidWeights, Unsupported)

    def __init__(self, layout: str, suffix: str) -> None:
        self.layout, self.suffix = layout, suffix
        self.name = f"weights-{layout}-{suffix[1:]}"

    def state(self) -> State:
        """Return the entries of a valid file."""
        from tests.backends.test_weights import study_state

        config = UResNetConfig(filters=2, depth=2, reps=1, classes=3)
        values = weights.initial(config, 3)
        if self.layout == weight_files.STUDY:
            return study_state(values, config, 3)
        if self.layout == weight_files.SPINE:
            return to_spine(values, config)
        if self.layout == weight_files.CANONICAL:
            return values | weights.settings(replace(config, slope=0.33))
        network = weight_files._network(self.layout, config, 3)
        weights.load(network, values)
        return network.state_dict()

    def save(self, state: Any, path: Path) -> None:
        """Write entries, valid or not."""
        content = io.BytesIO()
        if self.suffix == ".npz":
            named = {str(name).replace("/", "."): _array(value) for name, value in state.items()}
            np.savez(content, **named)
        else:
            torch.save(state, content)
        path.write_bytes(content.getvalue())

    def write(self, path: Path) -> None:
        """Write a valid file."""
        self.save(self.state(), path)

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change entries, members or bytes."""
        kind = rng.random()
        if kind < 0.2:
            super().mutate(path, rng)
        elif kind < 0.4:
            path.write_bytes(mutate_zip(path.read_bytes(), rng))
        else:
            state = mutate_state(self.state(), rng)
            if self.suffix == ".pt" and rng.random() < 0.2:
                key = pick(rng, ("state_dict", "network", "other"))
                state = pick(rng, ({key: state}, {key: [state]}, [state], None, {"state_dict": 5}))
            self.save(state, path)

    def read(self, path: Path) -> str:
        """Read the weights, write them in another layout, and read that again."""
        values = weight_files.read(path, self.layout)
        other = path.with_name("other.pt")
        weight_files.write(other, values, "sscn")
        again = weight_files.read(other, "sscn")
        digest = hashlib.sha256()
        if values.keys() - again.keys() - set(weights.SETTINGS):
            raise AssertionError("an entry is lost on its way through another layout")
        for name in sorted(again):
            mine, theirs = (each.float().numpy() for each in (values[name], again[name]))
            if mine.tobytes() != theirs.tobytes():
                raise AssertionError(f"{name} changes on its way through another layout")
            digest.update(name.encode() + mine.tobytes())
        return digest.hexdigest()


class WeightsBytes(Weights):
    """A file of weights with changed bytes, which the archive's checksums notice."""

    checked = True

    def __init__(self, suffix: str) -> None:
        super().__init__(weight_files.CANONICAL, suffix)
        self.name = f"weights-bytes-{suffix[1:]}"

    def mutate(self, path: Path, rng: Rng) -> None:
        """Change bytes."""
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


class RunWeights(Weights):
    """A file of weights for ``run --weights``."""

    refusals = (BadInput,)

    def __init__(self) -> None:
        super().__init__(weight_files.CANONICAL, ".npz")
        self.name = "weights-run-npz"

    def read(self, path: Path) -> str:
        """Find the file as a run does, and read it as its workers do."""
        found = find_weights(str(path))
        assert found is not None
        return f"{found.label} {sorted(read_weights(path))}"


def mutate_state(state: State, rng: Rng) -> State:
    """Remove, rename or change an entry."""
    state = dict(state)
    name = pick(rng, state)
    value = state[name]
    kind = int(rng.integers(6))
    if kind == 0:
        del state[name]
    elif kind == 1:
        deep = name.replace("unet", "unet" + ".below" * int(rng.integers(1, 200)))
        state[pick(rng, ("", "text", f"{name}.more", deep, 7))] = state.pop(name)
    elif kind == 2:
        state[name] = copy.deepcopy(pick(rng, VALUES))
    elif kind == 3 and torch.is_tensor(value):
        state[name] = value.to(pick(rng, DTYPES))
    else:
        state[name] = mutate_tensor(value, rng)
    return state


def mutate_tensor(value: Any, rng: Rng) -> Any:
    """Change the shape, the storage or the numbers of a tensor."""
    if not torch.is_tensor(value) or not value.ndim:
        return None
    kind = int(rng.integers(9))
    if kind == 0:
        return value.flatten()
    if kind == 1:
        return value[:0]
    if kind == 2:
        return value.unsqueeze(int(rng.integers(value.ndim + 1)))
    if kind == 3:
        return torch.zeros(1).expand(pick(rng, ((2**40,), (2**20, 2, 3, 3, 3), (3,) * 20)))
    if kind == 4:
        return value.to_sparse()
    if kind == 5:
        return torch.cat([value, value])
    if kind == 6:
        return torch.empty(value.shape, device="meta")
    if kind == 7:
        return torch.full_like(value, pick(rng, (0, 1)))
    return torch.nn.Parameter(value) if value.is_floating_point() else value


def _array(value: Any) -> Any:
    """Return an entry as an array; numpy pickles what it has no type for."""
    if torch.is_tensor(value):
        if value.dtype is torch.bfloat16 or value.is_sparse or value.is_meta:
            value = torch.zeros(2)
        if value.numel() > 1 << 20:
            value = torch.zeros(5)
        return value.detach().numpy()
    array = np.empty((), object)
    array[()] = value
    return array


WEIGHTS = (
    Weights(weight_files.CANONICAL, ".npz"),
    Weights(weight_files.CANONICAL, ".pt"),
    Weights(weight_files.STUDY, ".pt"),
    Weights(weight_files.SPINE, ".pt"),
    Weights("sscn", ".pt"),
    RunWeights(),
    WeightsBytes(".npz"),
    WeightsBytes(".pt"),
)
