"""Accuracy: what each engine and each precision makes of the labels, and at what cost."""

from harness.spec.suite import Grid, Suite

EVENTS = 64
"""Held-out events of each size; the standard error of the accuracy is about half a per cent."""

SUITE = Suite(
    name="accuracy",
    question="Does an engine or a precision still find the right labels, and what does it cost?",
    grids=(
        Grid(
            batches=(4,),
            maps=("cold",),
            precisions=("fp32", "tf32", "fp16", "bf16"),
            count=EVENTS,
        ),
    ),
    needs_labels=True,
)
