"""Inference: time and memory of the forward pass of each engine."""

from harness.asv import track
from harness.spec.suite import Grid, Suite

SUITE = Suite(
    name="inference",
    question="Which engine labels an event's voxels fastest, and in least memory?",
    grids=(Grid(phases=("forward",)),),
)


class Inference(track.Cells):
    """The forward pass over commits."""

    suite = "inference"
    phase = "forward"
    params = (["sscn", "spconv", "minkowski", "dense"], [192, 512], [1], ["cold", "warm"])
