"""Measured ceilings of a machine: arithmetic, copy bandwidth, and the latency of a launch.

The peak of arithmetic in fp32 and fp64 on a CPU is that of a loop of multiply-adds in registers, in
C++. For other precisions, and on a GPU, it is that of the fastest of several large matrix products
of torch, because only matrix products use the matrix units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

from harness.errors import BadInput

REPEATS = 30
ROUNDS = 2_000_000
"""Rounds of multiply-adds in registers; about 5 ms."""

IN_REGISTERS = ("fp32", "fp64")
"""Precisions in which a CPU multiplies and adds single numbers."""

COPIED = {"cpu": 2**26, "cuda": 2**29}
"""Bytes of the copy, far more than the caches hold."""

SIDES = {"cpu": (1024,), "cuda": (4096, 8192)}
"""Rows and columns of the square matrices that are multiplied."""

LAUNCHES = 1000

Now = Callable[[], float]


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of a machine.

    Attributes
    ----------
    flops : mapping
        Precision -> floating-point operations per second; a multiply-add is two.
    copy : float
        Bytes read and written per second by a large copy.
    launch : float
        Seconds per launch of an empty kernel on a GPU, or per call of a torch operator on an
        empty tensor on a CPU; the mean of many consecutive ones.
    threads : int
        CPU threads of the measurement.
    methods : mapping
        Precision -> method of the measurement, ``registers`` or ``matmul``.
    """

    flops: Mapping[str, float]
    copy: float
    launch: float
    threads: int
    methods: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the ceilings as a profile holds them."""
        return {
            "flops": dict(self.flops),
            "copy": self.copy,
            "launch": self.launch,
            "threads": self.threads,
            "methods": dict(self.methods),
        }

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Create ceilings from the values of ``to_json``.

        Raises
        ------
        BadInput
            If a field is missing, unknown or not positive.
        """
        names = [entry.name for entry in fields(cls)]
        if not isinstance(values, Mapping) or set(values) - {"methods"} != {*names} - {"methods"}:
            raise BadInput(f"ceilings must have the fields {', '.join(names)}")
        flops, methods = values["flops"], values.get("methods", {})
        if not isinstance(flops, Mapping) or not isinstance(methods, Mapping):
            raise BadInput("the flops and methods of ceilings must be given by precision")
        numbers = [*flops.values(), values["copy"], values["launch"], values["threads"]]
        if not all(type(value) in (int, float) and value > 0 for value in numbers):
            raise BadInput("every ceiling must be a number greater than zero")
        return cls(flops, values["copy"], values["launch"], values["threads"], methods)


def measure_ceilings(precision: str, device: str, threads: int = 0) -> Ceilings:
    """Measure the ceilings of this machine; takes about a second on a CPU.

    Parameters
    ----------
    precision : str
        Measured in addition to fp32.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        CPU threads; 0 for torch's number.
    """
    import torch

    threads = threads or torch.get_num_threads()
    flops, methods = {}, {}
    with _threads(threads):
        for name in dict.fromkeys(("fp32", precision)):
            if device == "cpu" and name in IN_REGISTERS:
                flops[name], methods[name] = fma_peak(threads, name), "registers"
            else:
                flops[name], methods[name] = matmul_peak(name, device), "matmul"
        return Ceilings(flops, copy_bandwidth(device), launch_latency(device), threads, methods)


def fma_peak(threads: int, precision: str = "fp32", now: Now = time.perf_counter) -> float:
    """Return operations per second of multiply-adds in registers on a CPU, in fp32 or fp64."""
    from harness.run.engine_interface import peak

    best = 0.0
    for _ in range(REPEATS):
        start = now()
        operations = peak(ROUNDS, precision == "fp64", threads)
        best = max(best, operations / (now() - start))
    return best


def matmul_peak(precision: str, device: str) -> float:
    """Return operations per second of the fastest of some large matrix products."""
    import torch

    kinds = {"fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}
    kind = kinds.get(precision, torch.float32)
    best = 0.0
    with _tf32(precision == "tf32"):
        for side in SIDES[device]:
            a = torch.ones((side, side), dtype=kind, device=device)
            b, out = torch.ones_like(a), torch.empty_like(a)

            def multiply(a: Any = a, b: Any = b, out: Any = out) -> None:
                torch.mm(a, b, out=out)

            best = max(best, 2 * side**3 / least_seconds(multiply, device))
    return best


def copy_bandwidth(device: str = "cpu") -> float:
    """Return bytes read and written per second by a large copy."""
    import torch

    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), device)


def launch_latency(device: str = "cpu") -> float:
    """Return seconds per launch of work that does nothing."""
    import torch

    if device == "cuda":
        sleep: Any = torch.cuda._sleep  # torch has no types for it

        def start() -> None:
            for _ in range(LAUNCHES):
                sleep(0)
    else:
        nothing = torch.empty(0)

        def start() -> None:
            for _ in range(LAUNCHES):
                torch.add(nothing, nothing, out=nothing)

    return least_seconds(start, device) / LAUNCHES


def least_seconds(work: Callable[[], Any], device: str, now: Now = time.perf_counter) -> float:
    """Return the shortest of several durations of a function, after one call that is not timed.

    A ceiling is the rate without disturbances, and disturbances only make a call longer.
    """
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    found = []
    for _ in range(REPEATS):
        wait()
        start = now()
        work()
        wait()
        found.append(now() - start)
    return min(found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
