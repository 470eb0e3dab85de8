"""Demo: a first comparison of the engines in minutes, on a laptop."""

from harness.spec.suite import DENSE, ENGINES, Grid, Suite

EVENTS = 16
"""Events of each size whose labels make the accuracy."""

SPARSE = tuple(name for name in ENGINES if name not in DENSE)

SUITE = Suite(
    name="demo",
    question="Which engine should I look at first on this machine? (minutes, on two cores)",
    grids=(
        Grid(backends=("dense",), sizes=(192,), batches=(1,), maps=("cold",), count=EVENTS),
        Grid(backends=SPARSE, batches=(1,), maps=("cold",), count=EVENTS),
        Grid(backends=SPARSE, sizes=(192,), batches=(1,), maps=("warm",)),
        Grid(backends=SPARSE, sizes=(192,), batches=(1,), phases=("step",), maps=("cold",)),
    ),
    budget=3.0,
)
