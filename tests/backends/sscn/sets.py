"""The kernel sets that run on the CPU of this machine."""

from __future__ import annotations

import pytest

from backends import registry
from backends.sscn import selection

COMPILED = selection.is_compiled()
SETS = ["reference", "cpu"] if COMPILED else ["reference"]
needs_cpu = pytest.mark.skipif(not COMPILED, reason="the C++ kernels are not built")


def engine(name: str, precision: str = "fp32", dim: int = 3):
    return registry.load(
        "sscn", dim=dim, device="cpu", precision=precision, options={"kernels": name}
    )
