"""Plans of the ``cuda`` kernels without a GPU: a driver takes their launches, and records them.

With ``TRITON_INTERPRET=1`` they can also run, in Triton's interpreter, on memory of the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backends.profiling_hooks import replaced
from backends.sscn.cuda import launching, plan, tape
from benchmarks.gpu import driver

_OBSERVER = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, *[ctypes.c_uint] * 5, ctypes.POINTER(ctypes.c_void_p)
)


@functools.cache
def _library() -> ctypes.CDLL:
    """Build and load the driver; a process keeps the first one that it has loaded."""
    folder = Path(tempfile.mkdtemp(prefix="libcuda-"))
    return ctypes.CDLL(str(driver.build(folder)), mode=ctypes.RTLD_GLOBAL)


class PlannedLaunch(NamedTuple):
    """A launch that has reached the driver: the name of the kernel, and the grid."""

    name: str
    grid: tuple[int, ...]


class _Kernel(NamedTuple):
    kernel: Any
    types: tuple[Any, ...]
    constants: dict[str, Any]


class PlanDriver:
    """Takes the launches of plans.

    Parameters
    ----------
    interpreted : bool
        Whether they run.

    Attributes
    ----------
    launches : list of PlannedLaunch
    """

    def __init__(self, *, interpreted: bool = False) -> None:
        self.launches: list[PlannedLaunch] = []
        self._interpreted = interpreted
        self._kernels: list[_Kernel] = []
        self._handles: dict[Any, int] = {}
        self._observer = _OBSERVER(self._take)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Plan passes of tensors on the CPU, and take their launches."""
        none = _OBSERVER()
        with ExitStack() as stack:
            stack.enter_context(replaced(launching, "compiled", lambda _: self._compile))
            stack.enter_context(replaced(plan, "DEVICE", lambda _: "cpu"))
            stack.enter_context(replaced(plan, "INTERPRETED", lambda _: False))
            stack.enter_context(replaced(tape, "current_stream", lambda _: lambda device: 0))
            _library().stub_observe(self._observer)
            stack.callback(_library().stub_observe, none)
            yield

    def _compile(
        self, kernel: Any, samples: list[Any], constants: dict[str, Any]
    ) -> launching.Compiled:
        types = tuple(int if isinstance(each, int) else _type(each) for each in samples)
        key = kernel.__name__, types, tuple(sorted(constants.items()))
        if key not in self._handles:
            self._kernels.append(_Kernel(kernel, types, constants))
            self._handles[key] = len(self._kernels)
        return launching.Compiled(self._handles[key], 128, 0)

    def _take(
        self, function: int, x: int, y: int, z: int, threads: int, shared: int, arguments: Any
    ) -> None:
        kernel, types, constants = self._kernels[function - 1]
        self.launches.append(PlannedLaunch(kernel.__name__, (x, y, z)))
        if self._interpreted:
            values = [_value(arguments[i], kind) for i, kind in enumerate(types)]
            kernel[x, y, z](*values, **constants)


def _type(sample: Any) -> Any:
    return sample if isinstance(sample, torch.dtype) else sample.dtype


def _number(pointer: int, kind: Any) -> int:
    found: int = ctypes.cast(pointer, ctypes.POINTER(kind))[0]
    return found


def _value(pointer: int, kind: Any) -> Any:
    if kind is int:
        return _number(pointer, ctypes.c_int32)
    # Kernels use the address alone.
    memory = (ctypes.c_uint8 * 64).from_address(_number(pointer, ctypes.c_uint64))
    return torch.frombuffer(memory, dtype=kind)
