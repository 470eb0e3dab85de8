"""Checkpoints of SPINE's ``UResNetSegmentation``: their names and layouts, in and out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from backends import minkowski_layout, weights
from backends.contract import Kind
from backends.uresnet import UResNetConfig
from backends.weights import InvalidWeights, Weights

_STEM = "backbone.encoder.input_layer.kernel"
_COUNTER = "num_batches_tracked"


def from_spine(state: Mapping[str, Tensor]) -> Weights:
    """Convert the state dict of a ``UResNetSegmentation`` to canonical weights.

    Raises
    ------
    InvalidWeights
        If an entry is missing, unknown or of another shape.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    config, dim = _size(state)
    shapes = weights.shapes(config, dim)
    found: Weights = {}
    unused = {name for name in state if not name.endswith(_COUNTER)}
    for ours, theirs, kind in _entries(config):
        if theirs not in state:
            raise InvalidWeights(f"this checkpoint lacks {theirs}, which SPINE's UResNet has")
        value = state[theirs]
        shape = shapes[ours]
        if _is_kernel(kind, ours):
            value = _canonical(value, kind, dim, shape, theirs)
        if tuple(value.shape) != shape:
            raise InvalidWeights(
                f"{theirs} has shape {tuple(value.shape)}, the others need {shape}"
            )
        found[ours] = value
        unused.discard(theirs)
    if unused:
        raise InvalidWeights(
            f"{min(unused)} is not part of the networks here, which have no ghost layer and no "
            "biases of convolutions"
        )
    return found


def to_spine(values: Mapping[str, Tensor], config: UResNetConfig) -> Weights:
    """Convert canonical weights to the state dict of a ``UResNetSegmentation``.

    The counters of batches are zero: with a momentum, the norms do not use them.
    """
    state: Weights = {}
    for ours, theirs, kind in _entries(config):
        value = values[ours]
        if _is_kernel(kind, ours):
            value = minkowski_layout.from_canonical(kind, value).contiguous()
        state[theirs] = value
        if theirs.endswith(".running_var"):
            counter = theirs.removesuffix("running_var") + _COUNTER
            state[counter] = torch.zeros((), dtype=torch.int64)
    return state


def is_spine(names: Mapping[str, Tensor]) -> bool:
    """Return whether entries have the names of a ``UResNetSegmentation``."""
    return any(name.removeprefix("module.") == _STEM for name in names)


def _entries(config: UResNetConfig) -> Iterator[tuple[str, str, Kind]]:
    """Yield the canonical name and SPINE's name of each weight, and the kind of its layer."""
    for name, layer in weights.blank(config).layers():
        theirs = layer_name(name, config.depth)
        if layer.kind is Kind.NORM:
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{name}.{part}", f"{theirs}.bn.{part}", layer.kind
        elif layer.kind is Kind.LINEAR:
            for part in ("weight", "bias") if name == "linear" else ("weight",):
                yield f"{name}.{part}", f"{theirs}.linear.{part}", layer.kind
        else:
            yield f"{name}.weight", f"{theirs}.kernel", layer.kind


_OUTER = {
    "stem": "backbone.encoder.input_layer",
    "norm": "output.0",
    "linear": "linear_segmentation",
}
_BETWEEN = {
    "down_norm": ("encoder.encoding_conv", 0),
    "down": ("encoder.encoding_conv", 2),
    "up_norm": ("decoder.decoding_conv", 0),
    "up": ("decoder.decoding_conv", 2),
}
"""Layers between levels -> SPINE's list of levels, and the place within an entry of that list."""


def layer_name(name: str, depth: int) -> str:
    """Return SPINE's name of a layer; its decoder numbers levels from the coarsest up."""
    if name in _OUTER:
        return _OUTER[name]
    level = name.count("below.")
    coarsest_first = depth - 2 - level
    rest = name.removeprefix("unet." + level * "below.")
    if rest in _BETWEEN:
        levels, place = _BETWEEN[rest]
        number = coarsest_first if levels.startswith("decoder") else level
        return f"backbone.{levels}.{number}.{place}"
    side, block, layer = rest.split(".")
    layer = layer.replace("shortcut", "residual")
    if side == "encoder":
        return f"backbone.encoder.encoding_block.{level}.{block}.{layer}"
    return f"backbone.decoder.decoding_block.{coarsest_first}.{block}.{layer}"


def _is_kernel(kind: Kind, name: str) -> bool:
    return kind not in (Kind.NORM, Kind.LINEAR) and name.endswith(".weight")


def _canonical(value: Tensor, kind: Kind, dim: int, shape: tuple[int, ...], name: str) -> Tensor:
    """Turn (K, in, out), the first axis of the kernel fastest, into the canonical layout."""
    ends = shape[:2] if kind is Kind.INVERSE else shape[1::-1]
    spatial = shape[2:]
    if tuple(value.shape) != (spatial[0] ** dim, *ends):
        raise InvalidWeights(
            f"{name} has shape {tuple(value.shape)}, the others need {(spatial[0] ** dim, *ends)}"
        )
    return minkowski_layout.to_canonical(kind, value, dim).contiguous()


def _size(state: Mapping[str, Tensor]) -> tuple[UResNetConfig, int]:
    """Return the size of the network whose state dict has these names, and its dimensions."""
    stem, classes = state.get(_STEM), state.get("linear_segmentation.linear.weight")
    blocks = [re.match(r"backbone\.encoder\.encoding_block\.(\d+)\.(\d+)\.", n) for n in state]
    found = [tuple(map(int, match.groups())) for match in blocks if match]
    if stem is None or stem.ndim != 3 or classes is None or classes.ndim != 2 or not found:
        raise InvalidWeights("this is not the state dict of SPINE's UResNetSegmentation")
    taps, inputs, filters = stem.shape
    if taps not in (9, 27) or not inputs * filters * len(classes):
        raise InvalidWeights(
            f"{_STEM} has shape {tuple(stem.shape)}; the networks here have an input kernel of 3"
        )
    depth, reps = (1 + max(numbers) for numbers in zip(*found, strict=True))
    if depth > weights.DEEPEST or reps > len(found):
        raise InvalidWeights(f"these weights belong to {depth} levels of {reps} blocks")
    return UResNetConfig(filters, depth, reps, len(classes), inputs), 3 if taps == 27 else 2
