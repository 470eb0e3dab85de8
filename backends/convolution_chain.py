"""Chains of convolutions of one kind, to measure the cost of dilation without a network.

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
from backends.float64_reference import Reference, reference_backend
from backends.uresnet import EngineLayer
from backends.weights import Weights

KERNEL = 3


@dataclass(frozen=True)
class ChainConfig:
    """The size of a chain.

    Attributes
    ----------
    kind : Kind
        ``SUBMANIFOLD`` or ``ORDINARY``.
    count : int
        Number of convolutions.
    channels : int
        Features per site after each of them.
    """

    kind: Kind
    count: int
    channels: int = 16


class ConvolutionChain(nn.Module):
    """Consecutive convolutions of one kind, with nothing between them.

    Raises
    ------
    Unsupported
        If the engine has no convolution of the kind.
    """

    def __init__(self, backend: Backend, config: ChainConfig) -> None:
        super().__init__()
        self.backend = backend
        self.margin = config.count * (KERNEL // 2)
        widths = [1] + [config.channels] * config.count
        self.convolutions = nn.ModuleList()
        for cin, cout in itertools.pairwise(widths):
            native = backend.convolution(config.kind, cin, cout, KERNEL, 0)
            self.convolutions.append(EngineLayer(native, config.kind, cin, cout, KERNEL))

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Make the engine's tensor, with room for the sites to grow in all directions.

        Engines treat the border of the volume differently. Here, no site reaches it.
        """
        moved = sites.clone()
        moved[:, 1:] += self.margin
        return self.backend.tensor(moved, features, spatial_size + 2 * self.margin, batch_size)

    def forward(self, x: Any) -> Tensor:
        """Return the features of all sites of the last convolution, in any order."""
        for convolution in self.convolutions:
            x = convolution(x)
        return self.backend.features(x)

    def layers(self) -> Iterator[tuple[str, EngineLayer]]:
        """Yield the canonical name of each layer, and the layer."""
        for index, layer in enumerate(self.convolutions):
            assert isinstance(layer, EngineLayer)
            yield f"convolutions.{index}", layer


def initial(config: ChainConfig, dim: int, seed: int = 0) -> Weights:
    """Draw the canonical weights of a chain; the same seed gives the same bits everywhere."""
    generator = torch.Generator().manual_seed(seed)
    widths = [1] + [config.channels] * config.count
    values: Weights = {}
    for index, (cin, cout) in enumerate(itertools.pairwise(widths)):
        shape = (cout, cin, *[KERNEL] * dim)
        scale = 1 / math.sqrt(cin * KERNEL**dim)
        values[f"convolutions.{index}.weight"] = torch.randn(shape, generator=generator) * scale
    return values


def sorted_columns(features: Tensor) -> Tensor:
    """Sort each column, so that results can be compared regardless of the order of sites."""
    return features.detach().cpu().double().sort(0).values


def chain_reference(
    config: ChainConfig, values: Mapping[str, Tensor], batch: SparseBatch
) -> Reference:
    """Compute the features of a chain in float64, each column sorted."""
    chain = ConvolutionChain(reference_backend(batch.dim), config).to(torch.float64)
    weights.load(chain, values)
    with torch.no_grad():
        x = chain.tensor(batch.sites, batch.features.double(), batch.spatial_size, batch.batch_size)
        return Reference(sorted_columns(chain(x)), None, {}, {}, "reference")
