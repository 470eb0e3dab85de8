"""Demo: a first comparison of the engines in minutes, on a laptop."""

from harness.spec.suite import DENSE, ENGINES, Grid, Suite

SPARSE = tuple(name for name in ENGINES if name not in DENSE)

SUITE = Suite(
    name="demo",
    question="Which engine should I look at first on this machine? (minutes, on two cores)",
    grids=(
        Grid(backends=("dense", *SPARSE), sizes=(192,), batches=(1,), maps=("cold",)),
        Grid(backends=SPARSE, sizes=(512, 768), batches=(1,), maps=("cold",)),
        Grid(backends=SPARSE, sizes=(192,), batches=(1,), maps=("warm",)),
        Grid(backends=SPARSE, sizes=(192,), batches=(1,), phases=("step",), maps=("cold",)),
    ),
    budget=3.0,
)
