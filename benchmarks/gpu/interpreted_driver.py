"""A CUDA driver whose launches run in Triton's interpreter, on memory of the CPU.

With it, plans of the ``cuda`` kernels run from their C++ code to the values, without a GPU. Use it
with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from backends.sscn.cuda import launching, plan
from benchmarks.gpu import driver

OBSERVER = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, *[ctypes.c_uint] * 5, ctypes.POINTER(ctypes.c_void_p)
)


_libraries: list[ctypes.CDLL] = []


class InterpretedDriver:
    """Runs launches when they reach the driver.

    Parameters
    ----------
    folder : Path
        Where the driver is built.
    monkeypatch : pytest.MonkeyPatch
        Makes plans use it.

    Attributes
    ----------
    launches : list of (str, tuple)
        Name and grid of each kernel.
    """

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.launches: list[tuple[str, tuple[int, ...]]] = []
        self._compiled: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._handles: dict[Any, int] = {}
        if not _libraries:  # a process keeps the first one that it has loaded
            _libraries.append(ctypes.CDLL(str(driver.build(folder)), mode=ctypes.RTLD_GLOBAL))
        self._observer = OBSERVER(self._run)
        _libraries[0].stub_observe(self._observer)
        monkeypatch.setattr(launching, "compiled", self._compile)
        monkeypatch.setattr(plan, "DEVICE", "cpu")
        monkeypatch.setattr(plan, "INTERPRETED", False)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)

    def _compile(
        self, kernel: Any, samples: list[Any], constants: dict[str, Any]
    ) -> launching.Compiled:
        types = tuple(int if isinstance(each, int) else _type(each) for each in samples)
        key = kernel.__name__, types, tuple(sorted(constants.items()))
        if key not in self._handles:
            self._compiled.append((kernel, types, constants))
            self._handles[key] = len(self._compiled)
        return launching.Compiled(self._handles[key], 128, 0)

    def _run(
        self, function: int, x: int, y: int, z: int, threads: int, shared: int, arguments: Any
    ) -> None:
        if not function:
            address, count = (
                ctypes.cast(arguments[i], ctypes.POINTER(ctypes.c_uint64))[0] for i in range(2)
            )
            ctypes.memset(address, 0, count)
            self.launches.append(("memset", (count,)))
            return
        kernel, types, constants = self._compiled[function - 1]
        values = [_value(arguments[i], kind) for i, kind in enumerate(types)]
        self.launches.append((kernel.__name__, (x, y, z)))
        kernel[x, y, z](*values, **constants)


def _type(sample: Any) -> Any:
    return sample if isinstance(sample, torch.dtype) else sample.dtype


def _value(pointer: int, kind: Any) -> Any:
    if kind is int:
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int32))[0]
    address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))[0]
    # Kernels use the address alone.
    memory = (ctypes.c_uint8 * 64).from_address(address)
    return torch.frombuffer(memory, dtype=kind)
