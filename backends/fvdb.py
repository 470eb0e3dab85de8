"""fVDB 0.6 (Apache-2.0) behind the contract; CUDA only.

This adapter was written from the source distribution and has not run yet. Its results, like those
of every engine, are compared with float64 before a time counts.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from typing import Any

import fvdb
import fvdb.nn
import torch
from torch import Tensor, nn

from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters


def probe() -> Capabilities:
    """Return the capabilities of fVDB on this machine."""
    on_cuda = torch.cuda.is_available()
    return Capabilities(
        version=importlib.metadata.version("fvdb-core"),
        devices=("cuda",) if on_cuda else (),
        precisions={"cuda": ("fp32",)} if on_cuda else {},
        dims=(3,),
        missing="" if on_cuda else "a CUDA device: its build needs one",
        note="reorders rows to the order of its grids",
    )


@dataclass
class Grids:
    """The grids of all levels, and the convolution plans between them; made at their first use."""

    levels: list[Any]
    input_of_row: Tensor  # (N,) input row of each row of the finest grid
    row_of_input: Tensor
    plans: dict[tuple[Kind, int], Any] = field(default_factory=dict)

    def plan(self, kind: Kind, level: int) -> Any:
        """Return the plan of a convolution from a level."""
        key = (kind, level)
        if key not in self.plans:
            self.plans[key] = self._make(kind, level)
        return self.plans[key]

    def _make(self, kind: Kind, level: int) -> Any:
        grid = self.levels[level]
        if kind is Kind.SUBMANIFOLD:
            return fvdb.ConvolutionPlan.from_grid_batch(3, 1, grid, grid)
        if kind is Kind.INVERSE:
            finer = self.levels[level - 1]
            return fvdb.ConvolutionPlan.from_grid_batch_transposed(2, 2, grid, finer)
        made = fvdb.ConvolutionPlan.from_grid_batch(2, 2, grid)
        self.levels.append(made.target_grid_batch)
        return made


@dataclass(frozen=True)
class GridTensor:
    """Features in the order of the grid of one level."""

    values: Any  # JaggedTensor
    grids: Grids
    level: int


class Convolution(nn.Module):
    """A convolution of fVDB, with the plan of its level."""

    def __init__(self, native: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.native = native
        self.kind = kind

    def forward(self, x: GridTensor) -> GridTensor:
        """Convolve with the plan."""
        plan = x.grids.plan(self.kind, x.level)
        change = {Kind.STRIDED: 1, Kind.INVERSE: -1}.get(self.kind, 0)
        return GridTensor(self.native(x.values, plan), x.grids, x.level + change)


class Backend(TorchArithmetic, PointwiseByTorch):
    """fVDB in fp32."""

    name = "fvdb"

    def tensor(
        self, sites: Tensor, features: Tensor, spatial_size: int, batch_size: int
    ) -> GridTensor:
        """Return a batch of grids, and the features in the order of their voxels."""
        by_event = sites[:, 0].argsort(stable=True)
        sites = sites[by_event]
        voxels = fvdb.JaggedTensor.from_data_and_indices(
            sites[:, 1:].contiguous(), sites[:, 0].contiguous(), batch_size
        )
        grid = fvdb.GridBatch.from_ijk(voxels)
        row = grid.ijk_to_index(voxels, cumulative=True).jdata.long()
        row_of_input = torch.empty_like(row)
        row_of_input[by_event] = row
        input_of_row = torch.empty_like(row)
        input_of_row[row] = by_event
        values = grid.jagged_like(features[input_of_row])
        return GridTensor(values, Grids([grid], input_of_row, row_of_input), 0)

    def with_features(self, x: GridTensor, features: Tensor) -> GridTensor:
        """Return other features on the same grids and plans."""
        return self.replace(x, features if x.level else features[x.grids.input_of_row])

    def features(self, x: GridTensor) -> Tensor:
        """Return the rows; at the finest level, in input order."""
        rows = self.rows(x)
        return rows if x.level else rows[x.grids.row_of_input]

    def rows(self, x: GridTensor) -> Tensor:
        """Return the rows in the order of the grid."""
        features: Tensor = x.values.jdata
        return features

    def replace(self, x: GridTensor, rows: Tensor) -> GridTensor:
        """Return other features on the same grids and plans."""
        return replace(x, values=x.values.jagged_like(rows))

    def convolution(
        self, kind: Kind, in_channels: int, out_channels: int, kernel_size: int, level: int
    ) -> nn.Module:
        """Return a convolution."""
        expected = 3 if kind is Kind.SUBMANIFOLD else 2
        if kind is Kind.ORDINARY or kernel_size != expected:
            raise Unsupported(f"fVDB: no {kind} convolution with kernel {kernel_size} here")
        layer = fvdb.nn.SparseConvTranspose3d if kind is Kind.INVERSE else fvdb.nn.SparseConv3d
        stride = 1 if kind is Kind.SUBMANIFOLD else 2
        native = layer(in_channels, out_channels, kernel_size, stride=stride, bias=False)
        return Convolution(native, kind)

    def parameters(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return the layer's parameters by their canonical names."""
        if isinstance(layer, Convolution):
            return {"weight": layer.native.weight}  # type: ignore[dict-item]
        assert isinstance(layer, Pointwise)
        return pointwise_parameters(layer)

    def to_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return (out, in, *k) as it is, and (in, out, *k) of the inverse as (out, in, *k)."""
        return weight.transpose(0, 1) if kind is Kind.INVERSE else weight

    def from_native(self, kind: Kind, weight: Tensor) -> Tensor:
        """Return the weight of an inverse convolution as (in, out, *k), others as they are."""
        return weight.transpose(0, 1) if kind is Kind.INVERSE else weight
