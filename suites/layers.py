"""Layers: time of each convolution of the UResNet on each engine, forward and backward."""

from typing import ClassVar

from harness.asv import track
from harness.spec.cell import LAYER_PHASES, ModelSpec, layers_of
from harness.spec.suite import Grid, Suite

LAYERS = tuple(layers_of(ModelSpec()))

SUITE = Suite(
    name="layers",
    question=(
        "What does one convolution, its gradients and its kernel map cost at each level, with the "
        "sites and channels that it has in the UResNet?"
    ),
    grids=(
        Grid(batches=(1,), phases=LAYER_PHASES[:3], maps=("warm",), layers=LAYERS),
        Grid(
            batches=(1,),
            phases=("map",),
            maps=("cold",),
            # An inverse convolution has the map of the strided one that it undoes.
            layers=tuple(layer for layer in LAYERS if not layer.startswith("inverse")),
        ),
    ),
    budget=1.0,
)


class Forward(track.Cells):
    """Single convolutions over commits."""

    suite = "layers"
    phase = "forward"
    param_names: ClassVar[list[str]] = ["engine", "size", "batch", "layer"]
    params = (
        ["sscn", "spconv", "minkowski"],
        [192],
        [1],
        [
            *("submanifold-0", "submanifold-1", "submanifold-2", "submanifold-3", "submanifold-4"),
            *("strided-0", "strided-1", "strided-2", "strided-3"),
            *("inverse-0", "inverse-1", "inverse-2", "inverse-3"),
        ],
    )


class InputGradient(Forward):
    """Gradients of their inputs over commits."""

    phase = "input-gradient"


class WeightGradient(Forward):
    """Gradients of their weights over commits."""

    phase = "weight-gradient"


class MapBuilding(Forward):
    """Kernel maps over commits."""

    phase = "map"
    params = (
        ["sscn", "spconv", "minkowski"],
        [192],
        [1],
        [
            *("submanifold-0", "submanifold-1", "submanifold-2", "submanifold-3", "submanifold-4"),
            *("strided-0", "strided-1", "strided-2", "strided-3"),
        ],
    )
