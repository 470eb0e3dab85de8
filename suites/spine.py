"""SPINE: its UResNet on each engine behind SPINE, beside the same network without SPINE."""

from harness.spec.cell import NETWORKS
from harness.spec.suite import Grid, Suite

ENGINES = ("sscn", "spconv", "minkowski", "ocnn")

SUITE = Suite(
    name="spine",
    question=(
        "What does SPINE gain from another engine than its own MinkowskiEngine, and what does the "
        "way through SPINE cost?"
    ),
    grids=(
        Grid(
            backends=(
                "spine:engine=shipped",
                *(f"spine:engine={name}" for name in ENGINES),
                *ENGINES,
            ),
            sizes=(192, 768),
            batches=(1, 4, 16),
            phases=("forward", "step"),
            maps=("cold",),
            model=NETWORKS["spine"],
        ),
    ),
)
