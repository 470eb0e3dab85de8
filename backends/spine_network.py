"""SPINE's ``UResNetSegmentation`` as a network to be measured, on any engine behind SPINE."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from backends import minkowski_layout, weights
from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.norm import norm_parameters
from backends.spine import NAME
from backends.spine.engine import ENGINE, PRECISION
from backends.spine_checkpoints import layer_name
from backends.uresnet import EngineLayer, UResNetConfig

SHIPPED = "shipped"
"""MinkowskiEngine by SPINE's own adapter."""

ENGINES = ("sscn", "spconv", "minkowski", "ocnn", "dense", SHIPPED)


def probe() -> Capabilities:
    """Return what the installed SPINE can do here."""
    version = importlib.metadata.version("spine")
    on_cuda = torch.cuda.is_available()
    precisions: dict[str, tuple[str, ...]] = {"cpu": ("fp32", "fp64")}
    return Capabilities(
        version=version,
        devices=("cpu", "cuda") if on_cuda else ("cpu",),
        precisions=precisions | ({"cuda": ("fp32",)} if on_cuda else {}),
        options={"engine": ENGINES},
        network="UResNetSegmentation of SPINE",
    )


class Backend(TorchArithmetic):
    """SPINE on one engine: SPINE reads its choice once, when it is imported."""

    name = "spine"

    def __init__(self, dim: int, device: str, precision: str, options: dict[str, str]) -> None:
        super().__init__(dim, device, precision, options)
        engine = options["engine"]
        chosen = {"SPINE_SPARSE_BACKEND": NAME, ENGINE: engine, PRECISION: precision}
        if engine == SHIPPED:
            importlib.import_module("backends.minkowski")  # adds what MinkowskiEngine lacks
            chosen = {"SPINE_SPARSE_BACKEND": "minkowski"}
        if precision == "fp64":
            chosen.pop(PRECISION, None)
        os.environ.update(chosen)
        try:
            from spine.model.sparse import backend
        except ImportError as error:
            raise Unsupported(f"SPINE cannot be imported: {error}") from error
        if backend.name() != chosen["SPINE_SPARSE_BACKEND"]:
            raise Unsupported(f"SPINE runs on {backend.name()} in this process already")

    def network(self, config: UResNetConfig) -> SpineNetwork:
        """Return SPINE's network."""
        return SpineNetwork(self, config)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the parameters of SPINE's layer by their canonical names."""
        if hasattr(layer, "bn"):
            assert isinstance(layer.bn, nn.BatchNorm1d)
            return norm_parameters(layer.bn)
        if hasattr(layer, "linear"):
            assert isinstance(layer.linear, nn.Linear)
            return dict(layer.linear.named_parameters())
        return {"weight": layer.kernel}  # type: ignore[dict-item]

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn a canonical weight into SPINE's layout."""
        return weight if kind is Kind.LINEAR else minkowski_layout.from_canonical(kind, weight)

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Turn a weight in SPINE's layout into the canonical one."""
        if kind is Kind.LINEAR:
            return weight
        return minkowski_layout.to_canonical(kind, weight, self.dim)


class SpineNetwork(nn.Module):
    """SPINE's UResNet with the methods of ``backends.uresnet.UResNet``.

    Parameters
    ----------
    backend : Backend
        SPINE on an engine.
    config : UResNetConfig
        The size of the network.
    """

    def __init__(self, backend: Backend, config: UResNetConfig) -> None:
        super().__init__()
        from spine.model.uresnet import UResNetSegmentation

        self.backend = backend
        self.config = config
        self.segmentation = UResNetSegmentation(
            {
                "num_classes": config.classes,
                "num_input": config.in_channels,
                "filters": config.filters,
                "depth": config.depth,
                "reps": config.reps,
                "data_dim": backend.dim,
                "activation": {"name": "lrelu", "negative_slope": config.slope},
                "norm_layer": {
                    "name": "batch_norm",
                    "eps": config.eps,
                    "momentum": config.momentum,
                },
            }
        )

    def tensor(self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int) -> Any:
        """Return SPINE's batch: a table of batch index, coordinates and features."""
        from spine.data import TensorBatch

        return TensorBatch(
            torch.cat([sites.to(features.dtype), features], 1),
            batch_size=batch_size,
            has_batch_col=True,
            coord_cols=list(range(1, sites.shape[1])),
        )

    def forward(self, x: Any) -> Tensor:
        """Return the logits, (N, classes), rows in input order."""
        found: Tensor = self.segmentation(x)["segmentation"].tensor
        return found.view_as(found)  # not a deferred tensor

    def layers(self) -> Iterator[tuple[str, EngineLayer]]:
        """Yield the canonical name of each layer that owns weights, and the layer."""
        for name, blank in weights.blank(self.config).layers():
            native = self.segmentation.get_submodule(layer_name(name, self.config.depth))
            yield (
                name,
                EngineLayer(
                    native, blank.kind, blank.in_channels, blank.out_channels, blank.kernel_size
                ),
            )
