"""Inference: which engine is fastest and smallest at labelling the voxels of an event?"""

from harness.suite import Grid, Suite

SUITE = Suite(
    name="inference",
    question="Which engine labels an event's voxels fastest, and in least memory?",
    grids=(Grid(phases=("forward",)),),
)
