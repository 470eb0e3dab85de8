"""The option ``--network``: the network that a command measures or trains."""

from __future__ import annotations

from harness.spec.cell import ModelSpec

HELP = (
    "study, spine, a SPINE configuration (.yaml), or settings such as "
    "filters=32,depth=6,activation=leaky_relu:0.33,inputs=2,classes=2."
)


def find_network(text: str) -> ModelSpec:
    """Return the network of an option ``--network``, as ``backends.network_spec`` reads it.

    Raises
    ------
    BadInput
        If a size is beyond what a cell may have.
    UnknownNetwork
        If the text describes no network.
    """
    from backends.network_spec import parse_network

    return ModelSpec.of(parse_network(text))
