"""Passes of our network with the ``cuda`` kernels whose launches are recorded, on CPU tensors.

Kernels write nothing here. The sizes of the levels, which the host reads from the device, are
computed by the ``reference`` kernels, so that all launches and allocations have their true sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from backends import network, registry, weights
from backends.profiling_hooks import replaced
from backends.sscn import reference, selection
from backends.sscn.cuda import CudaKernels, maps
from backends.uresnet import UResNetConfig
from benchmarks.gpu.plan_driver import PlanDriver, PlannedLaunch
from harness.events.batches import benchmark_batch
from harness.events.open import open_events
from harness.spec.suite import TYPICAL_SEED

MODES = ("cold", "warm", "step")

_EMPTY = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"})
_WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"})


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes
    ----------
    kernel : JITFunction
    grid : tuple of int
    arguments : dict
        Numbers and constants by name, the options of the compiler, and tensors where these are
        kept.
    compiled : object
        Triton's compiled kernel; None if it was not launched.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    compiled: Any

    @property
    def programs(self) -> int:
        """Number of programs."""
        count = 1
        for extent in self.grid:
            count *= extent
        return count


@dataclass
class Record:
    """Everything that a pass does on the device.

    Attributes
    ----------
    launches : list of Launch
        Of Triton kernels, by Triton's launcher.
    planned : list of PlannedLaunch
        Those of plans.
    operations : Counter
        Torch operations that write something on the device, by name.
    allocations : int
        Tensors with memory of their own.
    waits : list of int
        For each wait of the host for the device, the number of device operations before it.
    """

    launches: list[Launch] = field(default_factory=list)
    planned: list[PlannedLaunch] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    allocations: int = 0
    waits: list[int] = field(default_factory=list)

    @property
    def device_operations(self) -> int:
        """Launches and torch operations."""
        return len(self.launches) + len(self.planned) + self.operations.total()

    def wait(self) -> None:
        """Count a wait for the device."""
        self.waits.append(self.device_operations)

    def kernels(self) -> Counter[str]:
        """Return the number of launches by kernel."""
        return Counter(launch.kernel.__name__ for launch in self.launches)


class _Operations(TorchDispatchMode):
    """Adds torch operations to a record."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        found = function(*arguments, **(named or {}))
        name = function.overloadpacket.__name__
        known = {storage for storage, _ in _storages((arguments, named))}
        own = {key: size for key, size in _storages(found) if key not in known}
        self.record.allocations += sum(size > 0 for size in own.values())
        if name in _WAITS:
            self.record.wait()
        from_host = name == "lift_fresh"  # the device would get a copy
        written = any(own.values()) or (function._schema.is_mutable and known)
        if (written or from_host) and name not in _EMPTY:
            self.record.operations[name] += 1
        return found


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage._cdata, storage.nbytes()
    elif isinstance(value, dict):
        yield from _storages(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _storages(each)


class Passes:
    """A network and a batch, whose passes can be run and recorded.

    Parameters
    ----------
    size, batch : int
        Voxels per side and events.
    sites : int, optional
        Use only about as many of the sites.
    """

    def __init__(self, size: int, batch: int, sites: int = 0) -> None:
        arrays, _ = benchmark_batch(open_events("sample", size=size), batch, TYPICAL_SEED)
        self.sites = torch.from_numpy(arrays["sites"]).int()
        self.features = torch.from_numpy(arrays["features"]).float()
        if sites:
            every = max(1, len(self.sites) // sites)
            self.sites = self.sites[::every].contiguous()
            self.features = self.features[::every].contiguous()
        self.spatial_size, self.batch = arrays["spatial_size"], batch
        config = UResNetConfig()
        with replaced(selection, "_triton_unavailable_reason", lambda _: lambda device: ""):
            self.engine = registry.load(
                "sscn", dim=3, device="cpu", precision="fp32", options={"kernels": "cuda"}
            )
        self.network = network.build(self.engine, config)
        network.reset(self.network, weights.initial(config, 3))
        self._parameters = [*self.network.parameters()]
        keys, _ = reference.sort_sites(self.sites, self.spatial_size)
        self._level_sizes = [len(torch.unique_consecutive(keys >> (3 * by))) for by in range(12)]
        self._target = torch.zeros(len(self.sites), dtype=torch.long)
        self._kept: Any = None

    def run(self, mode: str) -> None:
        """Run a pass: ``cold`` from sites on, ``warm`` with all maps, or a training ``step``."""
        if self.network.training != (mode == "step"):
            self.network.train(mode == "step")
        if mode == "step":
            loss = torch.nn.functional.cross_entropy(self._forward(), self._target)
            for parameter in self._parameters:
                parameter.grad = None
            loss.backward()
            return
        with torch.no_grad():
            if mode == "cold":
                self._forward()
                return
            if self._kept is None:
                self._kept = self._tensor()
                self.network(self._kept)
            self.network(self.engine.with_features(self._kept, self.features))

    def level_sizes(self, levels: int) -> list[int]:
        """Return the numbers of sites of the finest levels, as the device would count them."""
        return self._level_sizes[:levels]

    def _tensor(self) -> Any:
        return self.network.tensor(self.sites, self.features, self.spatial_size, self.batch)

    def _forward(self) -> Tensor:
        logits: Tensor = self.network(self._tensor())
        return logits


@contextmanager
def known_sizes(passes: Passes, record: Record | None = None) -> Iterator[None]:
    """Give the host the sizes of the levels and an order, which no kernel writes here."""

    def read(ends: Tensor) -> list[int]:
        if record is not None:
            record.wait()
        return [*passes.level_sizes(ends.shape[1] - 1), 0]

    def inverted(order: Tensor) -> Tensor:
        return order

    with (
        replaced(maps, "_read", lambda _: read),
        replaced(CudaKernels, "inverted", lambda _: staticmethod(inverted)),
    ):
        yield


def record(
    passes: Passes,
    mode: str,
    *,
    launch: bool = False,
    keep_tensors: bool = False,
    planned: bool = False,
) -> Record:
    """Run a pass twice, and return the record of the second time.

    Parameters
    ----------
    passes : Passes
    mode : str
        One of ``MODES``.
    launch : bool
        Whether kernels are compiled and launched, which needs the driver of ``driver.install``.
    keep_tensors : bool
        Whether launches refer to their tensors; autograd then copies gradients that it would take.
    planned : bool
        Whether the passes are planned, as on a GPU, or run layer by layer.
    """
    found = Record()
    taker = PlanDriver()
    run: Callable[..., Any] = JITFunction.run

    def recorded(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        compiled = run(kernel, *arguments, grid=grid, warmup=warmup, **named) if launch else None
        values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}
        if not keep_tensors:
            values = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
        found.launches.append(Launch(kernel, tuple(grid), values, compiled))
        return compiled

    with ExitStack() as stack:
        stack.enter_context(replaced(JITFunction, "run", lambda _: recorded))
        stack.enter_context(known_sizes(passes, found))
        if planned:
            stack.enter_context(taker.installed())
        passes.run(mode)  # folds norms and builds the maps that a warm pass reuses
        found.__init__()  # type: ignore[misc]
        taker.launches = found.planned
        stack.enter_context(_Operations(found))
        passes.run(mode)
    return found
