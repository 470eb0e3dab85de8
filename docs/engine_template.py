"""An engine for sscn-bench in one file: copy it, and replace its parts with yours.

docs/own-engine.md has the metadata of a package that registers it.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from backends.arithmetic import TorchArithmetic
from backends.contract import Capabilities, Kind, Unsupported, site_keys
from backends.pointwise import Pointwise, PointwiseByTorch, pointwise_parameters
from backends.profiling_hooks import observing_maps


def probe():
    """Return the capabilities of your engine here; raise any exception if it cannot run here."""
    return Capabilities(
        version="0.1",
        devices=("cpu",),
        precisions={"cpu": ("fp32", "fp64")},
        dims=(2, 3),
        kinds=frozenset(Kind) - {Kind.ORDINARY},
        options={},  # name: (default, other values)
    )


@dataclass
class Maps:
    """Data that your engine derives from the sites: levels, hash tables, kernel maps."""

    sites: list  # (N, 1 + dim) int64 of each level
    size: int
    built: dict = field(default_factory=dict)

    def pairs(self, kind, level, kernel_size):
        """Return (input rows, output rows) per tap; they are built once and then reused."""
        key = (kind if kind is Kind.SUBMANIFOLD else Kind.STRIDED, level, kernel_size)
        if key not in self.built:
            self.built[key] = self._build(*key)
        found = self.built[key]
        return [pair[::-1] for pair in found] if kind is Kind.INVERSE else found

    def _build(self, kind, level, kernel_size):
        fine = self.sites[level]
        dim = fine.shape[1] - 1
        taps = torch.cartesian_prod(*[torch.arange(kernel_size)] * dim)
        if kind is Kind.SUBMANIFOLD:
            coarse, taps, stride = fine, taps - kernel_size // 2, 1
        else:
            coarse, stride = fine.clone(), 2
            coarse[:, 1:] //= 2
            coarse = coarse.unique(dim=0)
            self.sites.append(coarse)
        # Number the voxels of a wider volume: keys of sites outside must differ from all others.
        wide = self.size + 2 * kernel_size
        shift = torch.tensor([0] + [kernel_size] * dim)
        keys, order = site_keys(fine + shift, wide).sort()
        pairs = []
        for tap in taps:
            wanted = coarse.clone()
            wanted[:, 1:] = wanted[:, 1:] * stride + tap
            wanted = site_keys(wanted + shift, wide)
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            rows_out = (keys[place] == wanted).nonzero().squeeze(1)
            pairs.append((order[place[rows_out]], rows_out))
        return pairs


@dataclass
class Tensor:
    """Your engine's sparse tensor; the network only passes it from layer to layer."""

    values: torch.Tensor
    maps: Maps
    level: int


class Convolution(nn.Module):
    """One layer of your engine, with weights in its own layout."""

    def __init__(self, kind, in_channels, out_channels, kernel_size, dim):
        super().__init__()
        self.kind, self.kernel_size = kind, kernel_size
        self.weight = nn.Parameter(torch.zeros(kernel_size**dim, in_channels, out_channels))

    def forward(self, x):
        """Return your tensor on the output sites of this kind of layer."""
        level = x.level - (self.kind is Kind.INVERSE)
        pairs = x.maps.pairs(self.kind, level, self.kernel_size)
        level += self.kind is Kind.STRIDED
        out = x.values.new_zeros(len(x.maps.sites[level]), self.weight.shape[2])
        for (rows_in, rows_out), matrix in zip(pairs, self.weight, strict=True):
            out = out.index_add(0, rows_out, x.values[rows_in] @ matrix)
        return Tensor(out, x.maps, level)


# TorchArithmetic sets and reads torch's precision settings; PointwiseByTorch has norms, ReLU,
# linear layers, sums and concatenations by torch.
class Backend(TorchArithmetic, PointwiseByTorch):
    """Your engine for one device, precision and dimension."""

    name = "example"

    def __init__(self, dim, device, precision, options):
        super().__init__(dim, device, precision, options)  # then set your own precision settings

    def precision_readback(self):
        """Return all precision settings, torch's and yours; they are stored in the record."""
        return super().precision_readback() | {}

    def tensor(self, sites, features, spatial_size, batch_size):
        """Return your tensor with nothing cached; sites are int32, the batch index first."""
        return Tensor(features, Maps([sites.long()], spatial_size), 0)

    def with_features(self, x, features):
        """Return a tensor with new features, in input order, on the sites and maps of another."""
        return replace(x, values=features)

    def features(self, x):
        """Return the features; at the level of the input, rows are in input order."""
        return x.values

    def rows(self, x):
        """Return the features in your own order, for the layers of ``PointwiseByTorch``."""
        return x.values

    def replace(self, x, rows):
        """Return the tensor with other features in your own order."""
        return replace(x, values=rows)

    def convolution(self, kind, in_channels, out_channels, kernel_size, level):
        """Return a convolution without bias, or raise with the name of the missing operation."""
        if kind is Kind.ORDINARY:
            raise Unsupported("this engine has no ordinary convolution")
        return Convolution(kind, in_channels, out_channels, kernel_size, self.dim)

    def parameters(self, layer):
        """Return your layer's parameters by their canonical names."""
        if isinstance(layer, Pointwise):
            return pointwise_parameters(layer)
        return {"weight": layer.weight}

    def observe(self, observer):
        """Report the construction of kernel maps, for profiles and for ``engines prove``."""
        return observing_maps(observer, (Maps, "_build"))

    def to_native(self, kind, weight):
        """Convert torch's layout, (out, in, *k) or (in, out, *k) for the inverse, to yours."""
        if kind is Kind.LINEAR:
            return weight
        if kind is not Kind.INVERSE:
            weight = weight.transpose(0, 1)
        return weight.flatten(2).permute(2, 0, 1)

    def from_native(self, kind, weight):
        """Convert your layout to torch's."""
        if kind is Kind.LINEAR:
            return weight
        order = (1, 2, 0) if kind is Kind.INVERSE else (2, 1, 0)
        return weight.permute(*order)
