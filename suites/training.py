"""Training: which engine is fastest and smallest at one optimisation step?"""

from harness.suite import Grid, Suite

SUITE = Suite(
    name="training",
    question="Which engine takes an optimisation step fastest, and in least memory?",
    grids=(Grid(phases=("step",)),),
)
