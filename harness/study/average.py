"""The running average of the weights of a network.

With a few events per step, the weights fluctuate so much that consecutive evaluations differ by
about one per cent. The average over the last steps fluctuates less and has a higher accuracy;
trainings are evaluated with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


class WeightAverage:
    """Exponential average of weights and running statistics over steps.

    Parameters
    ----------
    network : Module
        The network in training. Integer buffers (counters) are copied, not averaged.
    decay : float
        Weight of the previous average in an update, 0 to 1. In the first steps the weight is
        ``(1 + step) / (10 + step)`` if that is smaller, so that the initial weights soon lose
        their influence.
    """

    def __init__(self, network: Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average: dict[str, Tensor] = copy.deepcopy(dict(network.state_dict()))
        pairs = [(self._average[name], value) for name, value in network.state_dict().items()]
        numbers = [pair for pair in pairs if pair[1].is_floating_point()]
        self._averages, self._weights = map(list, zip(*numbers, strict=True))
        self._counters = [pair for pair in pairs if not pair[1].is_floating_point()]

    def state(self) -> dict[str, Tensor]:
        """Return the averaged state, with the names of the state dict of the network."""
        return self._average

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set the average to a saved one."""
        for name, value in self._average.items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights of the network after a step to the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for average, count in self._counters:
            average.copy_(count)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the averaged weights into the network until the end of the context."""
        own: Any = copy.deepcopy(dict(self._network.state_dict()))
        self.apply()
        try:
            yield
        finally:
            self._network.load_state_dict(own)

    def apply(self) -> None:
        """Load the averaged weights into the network."""
        self._network.load_state_dict(self._average)
