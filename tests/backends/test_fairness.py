"""Cold cells build their maps, warm cells reuse them, and nothing else is hidden in either."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends import cases, registry
from backends.arithmetic import autocast

BITWISE = tomllib.loads(Path(__file__).with_name("determinism.toml").read_text())

LEVELS = cases.SMALL.depth

BUILDERS = {
    # Engine -> (where its maps are built, builds of one pass). A submanifold map for each level,
    # and a strided one between levels, unless the engine builds them all at once.
    "spconv": (("spconv.pytorch.ops", "get_indice_pairs"), 2 * LEVELS - 1),
    "torchsparse": (("torchsparse.nn.functional", "build_kernel_map"), 2 * LEVELS - 1),
    "sparseconvnet": (("sparseconvnet.ioLayers", "Metadata"), 1),
    "ocnn": (("ocnn.octree.octree.Octree", "construct_all_neigh"), 1),
    "dense": (("backends.dense", "_coarser"), LEVELS - 1),
    # These keep all maps in one object that belongs to the tensor: count the objects.
    "sscn": (("backends.sscn.coordinates.CoordinateManager", "__init__"), 1),
    "minkowski": (("MinkowskiCoordinateManager.CoordinateManager", "__init__"), 1),
}


@pytest.fixture
def network(engine):
    _, values, _ = cases.with_reference("random_sites", 3, cases.SMALL, "forward")
    return cases.network_on(engine.load(3), cases.SMALL, values).eval()


def passes(network, batch):
    """Return functions that run a cold and a warm pass."""
    moved = batch.to(network.backend.device)
    kept = cases.tensor_of(network, batch)

    def cold():
        with torch.no_grad():
            return network(cases.tensor_of(network, batch))

    def warm():
        with torch.no_grad():
            return network(network.backend.with_features(kept, moved.features))

    return cold, warm


def owner_of(path):
    """Import the longest module of a dotted path, and walk the rest."""
    import importlib

    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def test_cold_builds_every_map_and_warm_builds_none(engine, network, monkeypatch):
    if engine.name not in BUILDERS:
        pytest.skip(f"{engine.name} builds its maps where Python does not see it")
    (path, name), expected = BUILDERS[engine.name]
    owner = owner_of(path)
    build = getattr(owner, name)
    built = []

    def counting(*arguments, **named):
        built.append(name)
        return build(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    cold, warm = passes(network, cases.random_sites(3))
    warm()
    built.clear()
    for _ in range(2):
        cold()
        assert len(built) == expected
        built.clear()
    for _ in range(2):
        warm()
        assert not built


def test_a_warm_pass_does_not_read_the_sites(engine, network):
    """Changed sites of a warm tensor have no effect; in a cold pass they have."""
    batch = cases.random_sites(3).to(engine.device)
    other = cases.batch_of(cases.scattered(len(batch.sites), 16, 3, seed=9), 16, 2)
    x = cases.tensor_of(network, batch)
    with torch.no_grad():
        first = network(x)
        sites = batch.sites.clone()
        batch.sites.copy_(other.sites)
        again = network(network.backend.with_features(x, batch.features))
        moved = network(cases.tensor_of(network, batch))
        batch.sites.copy_(sites)
    tolerance = {} if BITWISE["forward"].get(engine.name, True) else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(again, first, **(tolerance or {"atol": 0, "rtol": 0}))
    assert not torch.allclose(moved, first, atol=1e-2)


class Operations(TorchDispatchMode):
    """Count the operations of torch."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


MOVES = {
    "_to_copy", "clone", "copy_", "contiguous", "index", "index_select", "gather", "sort",
    "argsort", "scatter", "index_put", "index_put_", "index_copy", "unique2", "_unique2", "take",
}  # fmt: skip

ON_THE_WAY = {
    # Engines whose own rows are in another order or place, which is part of their cost:
    # (entering warm, leaving). All others hand features in and out as they are.
    "dense": ({"index_put"}, {"index"}),
    "sscn": ({"index_select"}, {"index_select"}),
    "ocnn": ({"index", "index_put_"}, {"index"}),
    "warpconvnet": ({"index"}, {"index"}),
    "fvdb": ({"index"}, {"index"}),
}


def test_nothing_is_copied_or_sorted_on_the_way_in_and_out(engine, network):
    batch = cases.random_sites(3).to(engine.device)
    with torch.no_grad():
        x = cases.tensor_of(network, batch)
        network(x)
        with Operations() as entering:
            y = network.backend.with_features(x, batch.features)
        with Operations() as leaving:
            rows = network.backend.features(y)
    allowed_in, allowed_out = ON_THE_WAY.get(engine.name, (set(), set()))
    assert MOVES & set(entering.seen) <= allowed_in
    assert MOVES & set(leaving.seen) <= allowed_out
    assert torch.equal(rows.cpu(), batch.features.cpu())


@pytest.mark.parametrize("phase", ["forward", "step"])
def test_results_are_reproducible_as_documented(engine, phase, record_property):
    """Engines return the same bits for the same input, except those listed as exceptions."""
    batch, values, _ = cases.with_reference("random_sites", 3, cases.SMALL, "forward")
    results = []
    for _ in range(4):
        network = cases.network_on(engine.load(3), cases.SMALL, values)
        got = getattr(cases, phase)(network, batch)
        gradients = got.gradients or {}
        results.append([got.logits.detach().cpu(), *gradients.values()])
    same = all(
        torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )
    record_property("bitwise", same)
    if engine.device == "cpu" and engine.name in BITWISE[phase]:
        assert same == BITWISE[phase][engine.name]
    elif engine.device == "cpu" and engine.name in registry.BUILT_IN:
        pytest.fail(f"write into determinism.toml that {engine.name} {phase} is {same}")


def test_autocast_is_off_in_fp32():
    with autocast("fp32", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", "cpu"):
        assert torch.is_autocast_enabled("cpu")
