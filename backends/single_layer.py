"""A single convolution of the UResNet, on the sites and with the channels of its level.

Only the engine's work on its own tensor is measured. For engines that have a method ``rows``, the
reordering of rows to the engine's order and back is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends import weights
from backends.contract import Backend, Kind, SparseBatch
from backends.convolution_chain import sorted_columns
from backends.float64_reference import Reference, reference_backend
from backends.uresnet import EngineLayer, UResNetConfig
from backends.weights import Weights

KERNELS = {Kind.SUBMANIFOLD: 3, Kind.STRIDED: 2, Kind.INVERSE: 2}

FORWARD, INPUT, WEIGHT, MAP = "forward", "input-gradient", "weight-gradient", "map"
PHASES = (FORWARD, INPUT, WEIGHT, MAP)


@dataclass(frozen=True)
class SingleLayerConfig:
    """The size of one convolution.

    Attributes
    ----------
    kind : Kind
        ``SUBMANIFOLD``, ``STRIDED`` or ``INVERSE``.
    fine : int
        Channels on the sites of the level.
    coarse : int
        Channels on the sites of the next coarser level; unused for a submanifold convolution.
    """

    kind: Kind
    fine: int
    coarse: int

    @classmethod
    def of(cls, network: UResNetConfig, kind: Kind, level: int, phase: str) -> SingleLayerConfig:
        """Return the size that a convolution has in a UResNet.

        Engines have no interface for a map alone. The phase ``map`` is measured with the
        smallest convolution that needs it, from one channel to one.
        """
        if phase == MAP:
            return cls(kind, 1, 1)
        return cls(kind, network.channels(level), network.channels(level + 1))

    @property
    def channels(self) -> tuple[int, int]:
        """Features per site of the input and of the output."""
        return {
            Kind.SUBMANIFOLD: (self.fine, self.fine),
            Kind.STRIDED: (self.fine, self.coarse),
            Kind.INVERSE: (self.coarse, self.fine),
        }[self.kind]


def coarsened(batch: SparseBatch, level: int, depth: int, channels: int) -> SparseBatch:
    """Return the sites of a batch at a level of a UResNet, with new random features.

    Parameters
    ----------
    batch : SparseBatch
        Sites of the finest level.
    level : int
        Number of strides above the finest level.
    depth : int
        Levels of the network, which rounds the volume up so that every stride divides it.
    channels : int
        Features per site. They are normally distributed, the same bits on every machine.
    """
    sites = batch.sites
    if level:
        coarse = torch.cat([sites[:, :1], sites[:, 1:] >> level], 1)
        sites = torch.unique(coarse, dim=0).contiguous()
    unit = 2 ** (depth - 1)
    generator = torch.Generator().manual_seed(level)
    return SparseBatch(
        sites=sites,
        features=torch.randn((len(sites), channels), generator=generator),
        labels=None,
        spatial_size=(-(-batch.spatial_size // unit) * unit) >> level,
        batch_size=batch.batch_size,
    )


class SingleLayer(nn.Module):
    """One convolution of an engine; for an inverse one, also the strided one before it.

    Raises
    ------
    Unsupported
        If the engine has no convolution of the kind.
    """

    def __init__(self, backend: Backend, config: SingleLayerConfig) -> None:
        super().__init__()
        self.backend = backend
        self.config = config
        self.down: EngineLayer | None = None
        if config.kind is Kind.INVERSE:
            self.down = self._layer(Kind.STRIDED, config.fine, config.coarse)
        self.layer = self._layer(config.kind, *config.channels)

    def _layer(self, kind: Kind, cin: int, cout: int) -> EngineLayer:
        native = self.backend.convolution(kind, cin, cout, KERNELS[kind], 0)
        return EngineLayer(native, kind, cin, cout, KERNELS[kind])

    def source(self, batch: SparseBatch, features: Tensor) -> Any:
        """Make the engine's tensor that the convolution reads."""
        x = self.backend.tensor(batch.sites, features, batch.spatial_size, batch.batch_size)
        return x if self.down is None else self.down(x)

    def forward(self, x: Any) -> Any:
        """Convolve."""
        return self.layer(x)

    def stored(self, x: Any) -> Tensor:
        """Return a tensor's values in the engine's own order, after any deferred computation."""
        rows = getattr(self.backend, "rows", self.backend.features)
        return rows(x)

    @property
    def weight(self) -> nn.Parameter:
        """The convolution's own weights, in the engine's layout."""
        found = self.backend.parameters(self.layer.native)["weight"]
        assert isinstance(found, nn.Parameter)
        return found

    def layers(self) -> Iterator[tuple[str, EngineLayer]]:
        """Yield the canonical name of each layer, and the layer."""
        for name, layer in (("down", self.down), ("layer", self.layer)):
            if layer is not None:
                yield name, layer


def initial(config: SingleLayerConfig, dim: int) -> Weights:
    """Draw the canonical weights; they have the same bits on every machine."""
    generator = torch.Generator().manual_seed(0)
    values: Weights = {}
    names = {"layer": config.kind}
    if config.kind is Kind.INVERSE:
        names = {"down": Kind.STRIDED, "layer": Kind.INVERSE}
    for name, kind in names.items():
        cin, cout = SingleLayerConfig(kind, config.fine, config.coarse).channels
        outer = (cin, cout) if kind is Kind.INVERSE else (cout, cin)
        taps = 1 if kind is Kind.INVERSE else KERNELS[kind] ** dim  # each fine site has one parent
        shape = (*outer, *[KERNELS[kind]] * dim)
        values[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(cin * taps)
    return values


class LayerCall:
    """One phase of one convolution: a call runs the phase, and everything else is done before.

    The gradients are those of half the sum of squares of the output, divided by the square root
    of the number of sites. This loss does not depend on the order of sites, which engines choose.

    Parameters
    ----------
    convolution : SingleLayer
        With its weights loaded.
    batch : SparseBatch
        On the device of the convolution's engine.
    features : Tensor
        (N, C), in the type of the engine's weights.
    phase : str
        ``forward``, ``input-gradient`` or ``weight-gradient``, each with a cached map; or
        ``map``, from the sites to the result of the smallest convolution.
    arithmetic : callable
        Returns the context in which forward passes run.
    """

    def __init__(
        self,
        convolution: SingleLayer,
        batch: SparseBatch,
        features: Tensor,
        phase: str,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.convolution = convolution
        self.batch = batch
        self.features = features
        self.phase = phase
        self.arithmetic = arithmetic
        self._last: Any = None
        convolution.train(phase in (INPUT, WEIGHT))
        convolution.requires_grad_(False)
        convolution.weight.requires_grad_(phase == WEIGHT)
        if phase == FORWARD:
            with torch.no_grad(), arithmetic():
                self._source = convolution.source(batch, features)
                convolution.stored(convolution(self._source))  # builds the map
        elif phase in (INPUT, WEIGHT):
            self._record()

    def _record(self) -> None:
        """Run forward once, and retain the graph."""
        self._leaf = self.features.detach().clone().requires_grad_(self.phase == INPUT)
        with self.arithmetic():
            x = self.convolution.source(self.batch, self._leaf)
            self._inner = self.convolution.stored(x)
            self._out = self.convolution.stored(self.convolution(x))
        self._target = self._inner if self.phase == INPUT else self.convolution.weight
        self._grad = self._out.detach() / math.sqrt(max(1, len(self.batch.sites)))

    def __call__(self) -> Any:
        """Run the phase once."""
        if self.phase in (INPUT, WEIGHT):
            (self._last,) = torch.autograd.grad(
                self._out, self._target, self._grad, retain_graph=True
            )
            return self._last
        with torch.no_grad(), self.arithmetic():
            building = self.phase == MAP
            x = self.convolution.source(self.batch, self.features) if building else self._source
            self._last = self.convolution(x)
            self.convolution.stored(self._last)
        return self._last

    def result(self) -> Tensor:
        """Return the result of the last call, as a table that does not depend on the engine.

        The order of the sites of a coarser level depends on the engine; on such a level, each
        column is sorted. The gradient of the input of an inverse convolution is propagated to the
        finer sites.
        """
        convolution, kind = self.convolution, self.convolution.config.kind
        if self.phase == WEIGHT:
            shape = weights.weight_shape(convolution.layer, self.batch.dim)
            return convolution.backend.from_native(kind, self._last).reshape(shape).flatten(1)
        if self.phase == INPUT:
            (found,) = torch.autograd.grad(
                self._inner, self._leaf, self._last, retain_graph=True, allow_unused=True
            )
            return torch.zeros_like(self._leaf) if found is None else found
        rows = convolution.backend.features(self._last)
        return sorted_columns(rows) if kind is Kind.STRIDED else rows


def layer_reference(
    config: SingleLayerConfig, values: Mapping[str, Tensor], batch: SparseBatch, phase: str
) -> Reference:
    """Compute the result of a phase in float64."""
    convolution = SingleLayer(reference_backend(batch.dim), config).to(torch.float64)
    weights.load(convolution, values)
    call = LayerCall(convolution, batch, batch.features.double(), phase)
    call()
    return Reference(call.result().detach(), None, {}, {}, "reference")
