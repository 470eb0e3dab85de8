"""Synthetic profiles for tests."""

from harness.profile.profile import HeldMemory, LayerProfile, MemoryProfile, Profile
from harness.spec.cell import Cell

CEILINGS = {
    "flops": {"fp32": 1e11},
    "copy": 1e10,
    "launch": 1e-6,
    "threads": 2,
    "methods": {"fp32": "registers"},
}

STEM = LayerProfile(
    "stem", 0, "convolution", "forward", 1, 4e-3, bytes=10**7, flops=10**8, sites=5000
)
DOWN = LayerProfile("unet.down", 0, "convolution", "forward", 1, 2e-3, 5 * 10**6, 5 * 10**7, 2000)
BACK = LayerProfile("stem", 0, "convolution", "backward", 1, 8e-3, 2 * 10**7, 2 * 10**8, 5000)
NORM = LayerProfile("norm", 0, "normalisation", "forward", 1, 1e-3, bytes=10**6, sites=5000)
HOST = LayerProfile("host", None, "host", "forward", 12, 5e-4)


def cell(backend="sscn", **changes):
    values = Cell("profile", backend, 192, 1, "step", "cold").to_json()
    return Cell.from_json(values | changes)


def memory():
    return MemoryProfile(
        baseline=3 * 10**8,
        peak=3 * 10**8 + 10**7,
        explained=98 * 10**5,
        at_peak=(
            HeldMemory("stem", "activation", 6 * 10**6),
            HeldMemory("unet.down", "activation", 3 * 10**6),
            HeldMemory("optimiser", "optimiser", 8 * 10**5),
        ),
        timeline=((0.0, 0), (0.002, 6 * 10**6), (0.006, 98 * 10**5), (0.015, 10**6)),
    )


def profile(backend="sscn", layers=(STEM, DOWN, NORM, HOST, BACK), commit="a" * 40, **changes):
    layers = tuple(layers)
    whole = sum(layer.seconds for layer in layers)
    values = {
        "cell": cell(backend),
        "code": {"commit": commit, "dirty": False},
        "machine": {"processor": "Example CPU", "threads": 2},
        "versions": {"torch": "2.13.0"},
        "seconds": whole,
        "instrumented_seconds": whole * 1.02,
        "layers": layers,
        "ceilings": CEILINGS,
        "memory": memory(),
    }
    return Profile(**(values | changes))
