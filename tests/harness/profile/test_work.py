"""Necessary work of layers, compared with counting by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backends import network, registry
from backends.uresnet import UResNetConfig
from harness.profile.ranges import RangeKey
from harness.profile.work import LevelSize, NetworkWork, level_sizes, submanifold_pairs

SMALL = UResNetConfig(filters=3, depth=3, reps=1, classes=4)


def random_sites(dim=3, size=9, count=60, seed=1):
    generator = np.random.default_rng(seed)
    sites = generator.integers(0, size, (count, 1 + dim))
    sites[:, 0] %= 2
    return np.unique(sites, axis=0).astype(np.int32)


def pairs_by_hand(sites):
    known = {tuple(map(int, site)) for site in sites}
    dim = sites.shape[1] - 1
    return sum(
        (batch, *(a + b for a, b in zip(site, step, strict=True))) in known
        for batch, *site in known
        for step in itertools.product((-1, 0, 1), repeat=dim)
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_pairs_and_levels_are_those_counted_by_hand(dim):
    sites = random_sites(dim)
    found = level_sizes(sites, 3)
    level = {tuple(map(int, site)) for site in sites}
    for grid in found:
        assert grid == LevelSize(len(level), pairs_by_hand(np.array(sorted(level))))
        level = {(batch, *(value // 2 for value in site)) for batch, *site in level}


@given(hnp.arrays(np.int32, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(0, 5)))
def test_any_sites_have_the_pairs_counted_by_hand(sites):
    sites = np.unique(sites, axis=0)
    assert submanifold_pairs(sites) == pairs_by_hand(sites)


def dense_flops(sites, config):
    """Count multiply-adds one by one: every pair of active sites that a kernel connects."""
    levels = [{tuple(map(int, site)) for site in sites}]
    for _ in range(config.depth - 1):
        levels.append({(b, *(v // 2 for v in site)) for b, *site in levels[-1]})
    submanifold = [pairs_by_hand(np.array(sorted(level))) for level in levels]
    total = 2 * submanifold[0] * config.in_channels * config.filters
    for level, sites_here in enumerate(levels):
        width = config.channels(level)
        blocks = config.reps * (2 if level + 1 < config.depth else 1)
        total += blocks * 2 * 2 * submanifold[level] * width * width
        if level + 1 < config.depth:
            children = len(sites_here)
            total += 2 * 2 * children * width * config.channels(level + 1)  # down and up
            total += 2 * submanifold[level] * width * width  # the first decoder block is wider
            total += 2 * children * 2 * width * width  # and has a shortcut
    return total + 2 * len(levels[0]) * config.filters * config.classes


def test_operations_of_a_network_are_those_counted_by_hand():
    sites = random_sites()
    backend = registry.load(
        "sscn", dim=3, device="cpu", precision="fp32", options={"kernels": "reference"}
    )
    net = network.build(backend, SMALL)
    needs = NetworkWork(net, level_sizes(sites, SMALL.depth), dim=3, classes=SMALL.classes)
    layers = [name for name, _ in net.layers()]
    forward = backward = 0
    for name in layers:
        for kind in ("convolution", "linear"):
            forward += needs.of(RangeKey(name, kind, "forward")).flops or 0
            backward += needs.of(RangeKey(name, kind, "backward")).flops or 0
    assert forward == dense_flops(sites, SMALL)
    stem = needs.of(RangeKey("stem", "convolution", "forward")).flops
    assert backward == 2 * forward - stem  # the gradient of the events is not needed


def test_bytes_are_rows_and_weights_once_each():
    sites = random_sites()
    backend = registry.load("sscn", dim=3, device="cpu", precision="fp32")
    net = network.build(backend, SMALL)
    grids = level_sizes(sites, SMALL.depth)
    needs = NetworkWork(net, grids, dim=3, classes=SMALL.classes)
    found = needs.of(RangeKey("unet.down", "convolution", "forward"))
    rows = grids[0].sites * 3 + grids[1].sites * 6
    assert found.bytes == 4 * (rows + 8 * 3 * 6)
    assert (found.level, found.sites) == (0, grids[1].sites)
    norm = RangeKey("unet.up_norm", "normalisation", "forward")
    assert needs.of(norm).bytes == 2 * 4 * grids[1].sites * 6
    fused = NetworkWork(net, grids, dim=3, classes=4, fused={"normalisation"})
    assert fused.of(norm).bytes is None
    assert fused.of(norm).sites == grids[1].sites


def test_time_between_layers_has_no_work():
    needs = NetworkWork(torch.nn.Linear(1, 1), [LevelSize(1, 1)], dim=3, classes=5)
    assert needs.of(RangeKey("host", "host", "forward")).bytes is None
