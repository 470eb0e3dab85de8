"""Dilation: growth of the active sites by ordinary and by submanifold convolutions."""

from harness.spec.cell import STACKS, ModelSpec
from harness.spec.suite import Grid, Suite

ENGINES = ("sscn", "dense", "spconv", "minkowski", "spconv-triton")
"""Engines with both kinds of convolution."""

SUITE = Suite(
    name="dilation",
    question=(
        "How many sites are active after 1 to 5 convolutions, ordinary against submanifold, and "
        "what do they cost?"
    ),
    grids=tuple(
        Grid(
            backends=ENGINES,
            sizes=(192,),
            batches=(1,),
            phases=STACKS,
            maps=("cold",),
            dim=dim,
            model=ModelSpec(depth=count),
        )
        for dim in (2, 3)
        for count in range(1, 6)
    ),
    budget=1.0,
)
