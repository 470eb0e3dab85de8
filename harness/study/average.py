"""The running average of a network's weights, which is what a training is judged by.

Adam on a few events a step keeps the weights in motion: evaluations scatter by a per cent from
one to the next. Their average over the last steps is steadier and better.
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
        Averaged as it trains; integers (counters) are taken as they are.
    decay : float
        Weight of the past in a step, 0 to 1; early on ``(1 + step) / (10 + step)`` where that is
        smaller, so that the random start is soon forgotten.
    """

    def __init__(self, network: Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average: dict[str, Tensor] = copy.deepcopy(dict(network.state_dict()))
        pairs = [(self._average[name], value) for name, value in network.state_dict().items()]
        numbers = [pair for pair in pairs if pair[1].is_floating_point()]
        self._averages, self._weights = map(list, zip(*numbers, strict=True))
        self._counters = [pair for pair in pairs if not pair[1].is_floating_point()]

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights, named as the network's."""
        return self._average

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, value in self._average.items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's weights after a step in."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for average, count in self._counters:
            average.copy_(count)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        own: Any = copy.deepcopy(dict(self._network.state_dict()))
        self.show()
        try:
            yield
        finally:
            self._network.load_state_dict(own)

    def show(self) -> None:
        """Give the network the averaged weights for good."""
        self._network.load_state_dict(self._average)
