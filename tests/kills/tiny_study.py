"""The command ``study`` at a scale that takes seconds."""

import sys

from harness import __main__ as cli
from harness.run.sampling import StopRule
from harness.spec.cell import ModelSpec
from harness.study import scales

TINY = scales.Scale(
    "tiny",
    "seconds",
    "cpu",
    mixtures=((192, 16),),
    michel_events=16,
    trainings=(
        scales.Training(
            "sparse 16 px",
            scales.SPARSE,
            192,
            batch=2,
            steps=30,
            crop=16,
            evaluate_every=10,
            held_out_events=2,
            tests=(scales.HeldOut(192, 4),),
        ),
    ),
    costs=scales.Costs(
        table=(),
        dense=(),
        planes=(),
        batches=(1,),
        volumes=(),
        overlays=(),
        occupancies=(),
        rule=StopRule(0.5, 3, 3, 0.1),
        warm_up=0.1,
        checked_events=1,
        phases=scales.FORWARD,
    ),
    model=ModelSpec(filters=2, depth=3, reps=1),
)

if __name__ == "__main__":
    scales.SCALES["tiny"] = TINY
    cli.main(["study", "--out", sys.argv[1], "--scale", "tiny"])
