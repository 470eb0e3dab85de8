"""A stack of convolutions of one kind: what dilation costs, without a network around it.

An ordinary convolution activates every site that its kernel reaches: one site becomes 3**dim, and
(2 n + 1)**dim after n of them. A submanifold convolution keeps the sites (arXiv:1706.01307).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends import weights
from backends.contract import Backend, Kind, SparseBatch
from backends.truth import Truth, reference
from backends.uresnet import Layer
from backends.weights import Weights

KERNEL = 3


@dataclass(frozen=True)
class StackConfig:
    """The size of a stack.

    Attributes
    ----------
    kind : Kind
        ``SUBMANIFOLD`` or ``ORDINARY``.
    count : int
        Number of convolutions.
    channels : int
        Features a site after each of them.
    """

    kind: Kind
    count: int
    channels: int = 16


class Stack(nn.Module):
    """Convolutions of one kind, one after the other, with nothing between.

    Raises
    ------
    Unsupported
        If the engine has no convolution of the kind.
    """

    def __init__(self, backend: Backend, config: StackConfig) -> None:
        super().__init__()
        self.backend = backend
        self.margin = config.count * (KERNEL // 2)
        widths = [1] + [config.channels] * config.count
        self.convolutions = nn.ModuleList()
        for cin, cout in itertools.pairwise(widths):
            native = backend.convolution(config.kind, cin, cout, KERNEL, 0)
            self.convolutions.append(Layer(native, config.kind, cin, cout, KERNEL))

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Make the engine's tensor, with room for the sites to grow in all directions.

        Engines differ in what they do at the end of the volume; no site gets there.
        """
        moved = sites.clone()
        moved[:, 1:] += self.margin
        return self.backend.tensor(moved, features, spatial_size + 2 * self.margin, batch_size)

    def forward(self, x: Any) -> Tensor:
        """Return the features of the sites that are active in the end, in any order."""
        for convolution in self.convolutions:
            x = convolution(x)
        return self.backend.features(x)

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield the canonical name of each layer, and the layer."""
        for index, layer in enumerate(self.convolutions):
            assert isinstance(layer, Layer)
            yield f"convolutions.{index}", layer


def initial(config: StackConfig, dim: int, seed: int = 0) -> Weights:
    """Draw the canonical weights of a stack; the same seed gives the same bits everywhere."""
    generator = torch.Generator().manual_seed(seed)
    widths = [1] + [config.channels] * config.count
    values: Weights = {}
    for index, (cin, cout) in enumerate(itertools.pairwise(widths)):
        shape = (cout, cin, *[KERNEL] * dim)
        scale = 1 / math.sqrt(cin * KERNEL**dim)
        values[f"convolutions.{index}.weight"] = torch.randn(shape, generator=generator) * scale
    return values


def in_order(features: Tensor) -> Tensor:
    """Sort each column, so that results compare whatever order an engine has its sites in."""
    return features.detach().cpu().double().sort(0).values


def truth(config: StackConfig, values: Mapping[str, Tensor], batch: SparseBatch) -> Truth:
    """Compute the features of a stack in float64, each column sorted."""
    stack = Stack(reference(batch.dim), config).to(torch.float64)
    weights.load(stack, values)
    with torch.no_grad():
        x = stack.tensor(batch.sites, batch.features.double(), batch.spatial_size, batch.batch_size)
        return Truth(in_order(stack(x)), None, {}, {}, "reference")
