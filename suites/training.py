"""Training: time and memory of one optimisation step of each engine."""

from harness.asv import track
from harness.spec.suite import Grid, Suite

SUITE = Suite(
    name="training",
    question="Which engine takes an optimisation step fastest, and in least memory?",
    grids=(Grid(phases=("step",)),),
)


class Training(track.Cells):
    """The optimisation step over commits."""

    suite = "training"
    phase = "step"
    params = (["sscn", "spconv", "minkowski"], [192, 512], [1], ["cold"])
