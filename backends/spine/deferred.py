"""Tensors whose values are computed at their first use.

SPINE reads the features and coordinates of every intermediate result, most of which it only counts.
Engines that fuse layers must not compute these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DeferredTensor(Tensor):
    """A tensor that answers ``len`` at once, and everything else with its computed values.

    Parameters
    ----------
    count : callable
        Returns the number of rows.
    compute : callable
        Returns the values.
    """

    _count: Callable[[], int]
    _compute: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, count: Callable[[], int], compute: Callable[[], Tensor]) -> DeferredTensor:
        """Create a tensor without storage."""
        made: DeferredTensor = torch.Tensor._make_wrapper_subclass(cls, (0,))
        made._count, made._compute = count, compute
        return made

    def __init__(self, count: Callable[[], int], compute: Callable[[], Tensor]) -> None:
        pass

    def __len__(self) -> int:
        return self._count()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch with the computed values."""
        return func(*computed(args), **(computed(kwargs) if kwargs else {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse: code below torch's functions would miss the gradient."""
        raise RuntimeError(f"{func} has no access to deferred features: add zero to them first")


def computed(value: Any) -> Any:
    """Return a value with every deferred tensor in it replaced by its computed values."""
    if isinstance(value, DeferredTensor):
        return value._compute()
    if isinstance(value, list | tuple):
        return type(value)([computed(each) for each in value])
    if isinstance(value, dict):
        return {key: computed(each) for key, each in value.items()}
    return value
