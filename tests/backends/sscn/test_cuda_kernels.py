"""The Triton kernels against float64, on a GPU or in Triton's interpreter.

The interpreter must be chosen before Triton is imported: ``test_cuda_interpreted`` runs this file
with ``TRITON_INTERPRET=1`` in a process of its own.
"""

import functools
import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip(
        "needs a GPU or TRITON_INTERPRET=1; test_cuda_interpreted runs these",
        allow_module_level=True,
    )

from backends import network, weights  # noqa: E402
from backends.contract import InvalidBatch, NormConfig, Unsupported, master_dtype  # noqa: E402
from backends.sscn import adapter  # noqa: E402
from backends.sscn.cuda import blocks, convolution, maps, splitting  # noqa: E402
from backends.sscn.deferred_layer import Rows  # noqa: E402
from backends.sscn.kernel_map import GatherMap, KernelMap, identity, morton  # noqa: E402
from backends.sscn.norm import Norm, differentiable  # noqa: E402
from backends.sscn.selection import load  # noqa: E402
from backends.uresnet import UResNetConfig  # noqa: E402

cuda, reference = load("cuda"), load("reference")
DEVICE = "cpu" if INTERPRETED else "cuda"
# Triton 3.9 announces another default for contracted multiply-adds; either is right here.
# Triton's interpreter up to 3.6 converts arrays of one element, which NumPy before 2.4 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
if not INTERPRETED:
    pytestmark.append(pytest.mark.cuda)

BOUNDS = {"fp32": 2e-6, "tf32": 3e-3, "fp16": 2e-3, "bf16": 1.5e-2}
"""Relative error of a result of about unit size; the interpreter cuts bf16 instead of rounding."""

TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@pytest.fixture
def switch_tf32():
    def switch(precision):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    before = torch.backends.cuda.matmul.allow_tf32
    yield switch
    torch.backends.cuda.matmul.allow_tf32 = before


def some_sites(seed, dim, size, count, batch=2):
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, size, (count, dim), generator=generator)
    events = torch.randint(0, batch, (count, 1), generator=generator)
    sites = torch.cat([events, places], 1).unique(dim=0).int()
    return sites[torch.randperm(len(sites), generator=generator)].to(DEVICE)


def table_by_row(gather_map):
    """Return the table (rows, taps) that a map of the cuda set stands for."""
    table, order, *_ = gather_map.tensors
    by_row = torch.full_like(table, -7)
    by_row[:, order] = table
    return by_row.t().long()


def brute_force(sites_in, sites_out, kernel_size, stride=1):
    """Return the table of a kernel map by its definition, from site to site."""
    dim = sites_in.shape[1] - 1
    rows = {tuple(site): row for row, site in enumerate(sites_in.tolist())}
    low = -(kernel_size // 2) if kernel_size % 2 else 0
    taps = list(itertools.product(range(low, low + kernel_size), repeat=dim))
    table = [
        [rows.get((batch, *(stride * at + by for at, by in zip(place, tap, strict=True))), -1)
         for tap in taps]
        for batch, *place in sites_out.tolist()
    ]  # fmt: skip
    return torch.tensor(table, dtype=torch.int64).reshape(len(sites_out), len(taps))


def sorted_levels(sites, size):
    keys, order = cuda.sort_sites(sites, size)
    return keys, sites[order].cpu()


few = settings(
    max_examples=3 if INTERPRETED else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)


@few
@given(
    seed=st.integers(0, 1000),
    dim=st.sampled_from([2, 3]),
    size=st.integers(1, 9),
    count=st.integers(1, 40),
)
def test_submanifold_map_is_the_brute_force_one(seed, dim, size, count):
    sites = some_sites(seed, dim, size, count)
    keys, ordered = sorted_levels(sites, size)
    assert torch.equal(keys.cpu(), morton(sites.cpu(), max(size - 1, 0).bit_length()).sort().values)
    kernel_map = cuda.submanifold_map(keys, dim, 3, size)
    assert kernel_map.mirrored
    expected = brute_force(ordered, ordered, 3)
    assert torch.equal(table_by_row(kernel_map.forward).cpu(), expected)


@few
@given(seed=st.integers(0, 1000), dim=st.sampled_from([2, 3]), count=st.integers(1, 60))
def test_strided_maps_are_the_brute_force_ones(seed, dim, count):
    size = 12
    keys, ordered = sorted_levels(some_sites(seed, dim, size, count), size)
    for _ in range(2):
        coarse, kernel_map = cuda.strided_map(keys, dim)
        halved = torch.cat([ordered[:, :1], ordered[:, 1:] // 2], 1)
        parents = halved.unique(dim=0)
        size //= 2
        parents = parents[morton(parents, (size - 1).bit_length()).argsort()]
        assert torch.equal(coarse.cpu(), morton(parents, (size - 1).bit_length()))
        down = brute_force(ordered, parents, 2, stride=2)
        assert torch.equal(table_by_row(kernel_map.forward).cpu(), down)
        up = torch.full((len(ordered), 2**dim), -1)
        parent, tap = (down >= 0).nonzero().unbind(1)
        up[down[parent, tap], tap] = parent
        assert torch.equal(table_by_row(kernel_map.backward).cpu(), up)
        keys, ordered = coarse, parents.int()


@pytest.mark.parametrize(
    ("dim", "kernel_size"), [(2, 3), pytest.param(2, 5, marks=pytest.mark.slow)]
)
def test_ordinary_map_reaches_every_site_inside(dim, kernel_size):
    size = 5
    keys, ordered = sorted_levels(some_sites(1, dim, size, 12), size)
    reached, kernel_map = cuda.ordinary_map(keys, dim, kernel_size, size)
    steps = range(-(kernel_size // 2), kernel_size // 2 + 1)
    sites = {
        (batch, *(at + by for at, by in zip(place, step, strict=True)))
        for batch, *place in ordered.tolist()
        for step in itertools.product(steps, repeat=dim)
    }
    inside = torch.tensor(sorted(s for s in sites if all(0 <= at < size for at in s[1:])))
    inside = inside[morton(inside, 3).argsort()]
    assert torch.equal(reached.cpu(), morton(inside, 3))
    forward = brute_force(ordered, inside, kernel_size)
    assert torch.equal(table_by_row(kernel_map.forward).cpu(), forward)
    backward = brute_force(inside, ordered, kernel_size)
    assert torch.equal(table_by_row(kernel_map.backward).cpu(), backward)


def test_far_sites_of_large_batches_are_told_apart():
    corner = torch.tensor([[255, 767, 767, 767], [255, 767, 767, 766], [254, 767, 767, 767]])
    sites = torch.cat([corner, torch.tensor([[0, 0, 0, 0], [255, 0, 0, 0]])]).int().to(DEVICE)
    keys, ordered = sorted_levels(sites, 768)
    assert int(keys[-1]) > 2**37
    kernel_map = cuda.submanifold_map(keys, 3, 3, 768)
    expected = brute_force(ordered, ordered, 3)
    assert torch.equal(table_by_row(kernel_map.forward).cpu(), expected)
    assert (expected >= 0).sum() == 7


@pytest.mark.parametrize(("dim", "size", "levels"), [(2, 12, 3), (3, 4, 2), (2, 1, 1)])
def test_the_maps_of_a_network_are_those_of_its_levels(dim, size, levels):
    sites = some_sites(5, dim, size, 50)
    keys, _ = cuda.sort_sites(sites, size)
    found = cuda.network_maps(keys, dim, 3, size, levels)
    assert len(found) == levels
    exact = keys.cpu()
    for level, (at, submanifold, down) in enumerate(found):
        assert torch.equal(at.cpu(), exact)
        expected = reference.submanifold_map(exact, dim, 3, size).forward.tensors[0]
        assert torch.equal(table_by_row(submanifold.forward).cpu(), expected.long())
        assert submanifold.mirrored
        if level == levels - 1:
            assert down is None
            return
        exact, between = reference.strided_map(exact, dim)
        for tested, wanted in zip(down[:2], between[:2], strict=True):
            assert torch.equal(table_by_row(tested).cpu(), wanted.tensors[0].long())
        size = (size + 1) // 2


def test_rows_are_ordered_by_their_taps():
    keys, ordered = sorted_levels(some_sites(3, 2, 14, 120, batch=1), 14)
    kernel_map = cuda.submanifold_map(keys, 2, 3, 14)
    table, _, taps, counts = kernel_map.forward.tensors
    expected = brute_force(ordered, ordered, 3)
    assert torch.equal(table_by_row(kernel_map.forward).cpu(), expected)
    masks = ((table >= 0).long() << torch.arange(9, device=DEVICE)[:, None]).sum(0)
    assert bool((masks.diff() >= 0).all())
    block = maps.tile_rows(len(keys))
    for tile, (listed, count) in enumerate(zip(taps.tolist(), counts.tolist(), strict=True)):
        inside = (table[:, tile * block : (tile + 1) * block] >= 0).any(1)
        assert listed[:count] == inside.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ([0, 4, 0, 0], r"the site \[0, 4, 0, 0\] lies outside a volume of 4 voxels per side"),
        ([0, 0, -1, 0], r"the site \[0, 0, -1, 0\] lies outside"),
        ([-1, 0, 0, 0], r"the site \[-1, 0, 0, 0\] lies outside"),
        ([0, 1, 2, 3], r"the site \[0, 1, 2, 3\] is given twice"),
    ],
)
def test_bad_sites_are_refused(site, message):
    sites = torch.tensor([[0, 1, 2, 3], site], dtype=torch.int32, device=DEVICE)
    with pytest.raises(InvalidBatch, match=message):
        cuda.sort_sites(sites, 4)


class Layer:
    """One convolution with random values, on the kernels under test and on the reference."""

    def __init__(
        self, kind, precision, widths, dim=2, size=10, count=45, seed=0, slope=0.0, maps=None
    ):
        self.slope = slope
        self.tested, self.exact = maps or connect(kind, dim, size, count, seed)
        first, second, outputs = widths
        taps, channels = self.exact.forward.taps, first + second
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = TYPES[precision]
        rows_in, rows_out = self.exact.backward.rows, self.exact.forward.rows
        self.x = self.random(rows_in, first)
        self.skip = self.random(rows_in, second) if second else None
        self.weight = self.random(taps, channels, outputs, scale=(taps * channels) ** -0.5)
        self.scale = self.random(channels, dtype=torch.float32)
        self.shift = self.random(channels, dtype=torch.float32)
        self.residual = self.random(rows_out, outputs)
        self.grad = self.random(rows_out, outputs)

    def random(self, *shape, scale=1.0, dtype=None):
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(dtype or self.dtype).to(DEVICE)

    def norm(self, kernels, used=True):
        if not used:
            return None, None
        return _as(kernels, self.scale), _as(kernels, self.shift)

    def forward(self, kernels, norm=True, residual=True, statistics=True):
        values = (_as(kernels, each) for each in (self.x, self.skip, self.weight))
        to_add = _as(kernels, self.residual) if residual else None
        table = self.map(kernels).forward
        scale, shift = self.norm(kernels, norm)
        return kernels.convolve(*values, table, scale, shift, to_add, statistics, self.slope)

    def to_input(self, kernels, norm=True):
        kernel_map = self.map(kernels)
        return kernels.input_gradient(
            _as(kernels, self.grad),
            _as(kernels, self.weight),
            kernel_map.backward,
            kernel_map.mirrored,
            _as(kernels, self.x),
            _as(kernels, self.skip),
            *self.norm(kernels, norm),
            self.slope,
        )

    def to_weight(self, kernels, norm=True):
        values = (_as(kernels, each) for each in (self.x, self.skip, self.grad))
        return kernels.weight_gradient(
            *values, self.map(kernels).forward, *self.norm(kernels, norm), self.slope
        )

    def map(self, kernels):
        return self.exact if kernels is reference else self.tested


def _as(kernels, value):
    return value.double() if kernels is reference and value is not None else value


def connect(kind, dim, size, count, seed=0):
    """Return the map of a kind on random sites, of the set under test and of the reference."""
    keys, _ = cuda.sort_sites(some_sites(seed, dim, size, count), size)
    return _connections(kind, keys, dim, size)


def _connections(kind, keys, dim, size):
    if kind == "linear":
        return identity(len(keys)), identity(len(keys))
    if kind == "submanifold":
        return tuple(each.submanifold_map(keys, dim, 3, size) for each in (cuda, reference))
    if kind == "ordinary":
        return tuple(each.ordinary_map(keys, dim, 3, size)[1] for each in (cuda, reference))
    pair = [each.strided_map(keys, dim)[1] for each in (cuda, reference)]
    if kind == "inverse":
        pair = [KernelMap(each.backward, each.forward, False) for each in pair]
    return tuple(pair)


def assert_close(value, exact, bound):
    assert value.shape == exact.shape
    error = (value.double() - exact).norm() / exact.norm().clamp(min=1e-30)
    assert bool(torch.isfinite(value).all())
    assert float(error) < bound


def check_layer(layer, bound):
    out, sums = layer.forward(cuda)
    exact, _ = layer.forward(reference)
    assert out.dtype == layer.dtype
    assert_close(out, exact, bound)
    stored = out.double()
    assert sums.dtype == torch.float64
    assert_close(sums, torch.stack([stored.sum(0), stored.square().sum(0)]), bound)
    for value, wanted in zip(layer.to_input(cuda), layer.to_input(reference), strict=True):
        if wanted.numel():
            assert_close(value, wanted, bound)
        else:
            assert value.shape == (0,)
    assert_close(layer.to_weight(cuda), layer.to_weight(reference), bound)


KINDS = ("submanifold", "strided", "inverse", "ordinary", "linear")


@pytest.mark.parametrize("precision", list(TYPES))
def test_a_few_tiles_of_64_rows_agree_with_float64(precision, switch_tf32, monkeypatch, request):
    monkeypatch.setattr(blocks, "TILES", ((0, 64),))
    blocks.convolution_blocks.cache_clear()
    request.addfinalizer(blocks.convolution_blocks.cache_clear)
    switch_tf32(precision)
    layer = Layer("submanifold", precision, (16, 0, 16), size=12, count=150)
    assert layer.exact.forward.rows > 64
    check_layer(layer, BOUNDS[precision])


@functools.cache
def maps_of_20000_sites(kind):
    """Return maps that are slow to build in the interpreter, where most sites have no neighbour."""
    return connect(kind, dim=2, size=600 if INTERPRETED else 160, count=20500)


@pytest.mark.parametrize(
    "precision",
    list(TYPES)
    if not INTERPRETED
    else [pytest.param(name, marks=pytest.mark.slow) for name in TYPES],
)
@pytest.mark.parametrize("kind", ["linear", "submanifold"])
def test_tiles_of_64_rows_agree_with_float64(kind, precision, switch_tf32):
    switch_tf32(precision)
    layer = Layer(kind, precision, (16, 0, 16), maps=maps_of_20000_sites(kind))
    assert blocks.tile_rows(layer.exact.forward.rows) == 64
    check_layer(layer, BOUNDS[precision])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_with_float64(kind):
    check_layer(Layer(kind, "fp32", (16, 0, 16)), BOUNDS["fp32"])


@pytest.mark.parametrize(("kind", "slope"), [("strided", 0.33), ("linear", 1.0)])
def test_leaky_activations_agree_with_float64(kind, slope):
    check_layer(Layer(kind, "fp32", (16, 16, 16), slope=slope), BOUNDS["fp32"])


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_every_precision_agrees_with_float64(precision, switch_tf32):
    switch_tf32(precision)
    check_layer(Layer("strided", precision, (16, 16, 16)), BOUNDS[precision])


@pytest.mark.parametrize(
    "widths",
    [(1, 0, 16), (16, 0, 5), (48, 48, 48), (3, 2, 7), (80, 0, 64), (96, 0, 80)],
    ids=str,
)
def test_widths_agree_with_float64(widths):
    check_layer(Layer("inverse", "fp32", widths, count=20), BOUNDS["fp32"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(TYPES))
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    "widths",
    [
        (1, 0, 16),
        (16, 16, 16),
        (32, 0, 32),
        (48, 48, 48),
        (64, 64, 64),
        (80, 0, 80),
        (96, 0, 128),
        (128, 128, 128),
        (160, 0, 160),
    ],
    ids=str,
)
def test_submanifold_in_every_width_and_precision(widths, dim, precision, switch_tf32):
    switch_tf32(precision)
    check_layer(Layer("submanifold", precision, widths, dim=dim, size=6), BOUNDS[precision])


def test_three_dimensional_submanifold_agrees_with_float64():
    layer = Layer("submanifold", "fp32", (16, 0, 16), dim=3, size=4)
    out, _ = layer.forward(cuda, residual=False, statistics=False)
    assert_close(out, layer.forward(reference, residual=False)[0], BOUNDS["fp32"])


def test_without_norm_residual_and_statistics():
    layer = Layer("strided", "fp32", (16, 16, 16))
    out, sums = layer.forward(cuda, norm=False, residual=False, statistics=False)
    assert sums.shape == (0,)
    assert_close(out, layer.forward(reference, norm=False, residual=False)[0], BOUNDS["fp32"])
    to_x, to_skip, sums = layer.to_input(cuda, norm=False)
    exact = layer.to_input(reference, norm=False)
    assert sums.shape == (0,)
    assert_close(to_x, exact[0], BOUNDS["fp32"])
    assert_close(to_skip, exact[1], BOUNDS["fp32"])
    weights = layer.to_weight(cuda, norm=False)
    assert_close(weights, layer.to_weight(reference, norm=False), BOUNDS["fp32"])


def test_statistics_survive_a_large_mean():
    layer = Layer("linear", "fp32", (16, 0, 16), count=70, size=12)
    layer.residual += 3000.0
    out, sums = layer.forward(cuda)
    mean = sums[0] / len(out)
    variance = sums[1] / len(out) - mean**2
    assert_close(variance, out.double().var(0, unbiased=False), 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradient_through_statistics(precision):
    layer = Layer("linear", precision, (5, 0, 7))
    to_sums = layer.random(2, 7, dtype=torch.float64)
    total = cuda.statistics_gradient(layer.grad, layer.residual, to_sums)
    exact = reference.statistics_gradient(layer.grad.double(), layer.residual.double(), to_sums)
    assert total.dtype == layer.dtype
    assert_close(total, exact, BOUNDS[precision])


@pytest.mark.parametrize(("grads", "sums"), [(1, 2), (2, 1), (3, 3), (5, 4)])
def test_all_gradients_of_an_output_are_added(grads, sums):
    layer = Layer("linear", "fp32", (5, 0, 7))
    of_values = [layer.random(*layer.grad.shape) for _ in range(grads)]
    of_sums = [layer.random(2, 17, dtype=torch.float64)[:, 3:10] for _ in range(sums)]
    total = cuda.total_gradient(of_values, layer.residual, of_sums)
    exact = reference.total_gradient(
        [each.double() for each in of_values], layer.residual.double(), of_sums
    )
    assert_close(total, exact, BOUNDS["fp32"])


@pytest.mark.parametrize(("parts", "most"), [(3, 1024), (150, 1024), (150, 100)])
def test_sums_in_parts_are_folded_like_their_total(parts, most, monkeypatch):
    monkeypatch.setattr("backends.sscn.cuda.norm.MOST_PARTS", most)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand((2, parts, 2, 20), generator=generator).double()
    first[:, 1] += 3.0
    second[:, 1] += 3.0
    weight, bias, mean, variance = torch.rand((4, 40), generator=generator)
    joined = torch.cat([first.sum(0), second.sum(0)], 1)
    found = []
    for sums in ((joined, None), (first, second)):
        running = mean.clone().to(DEVICE), variance.clone().to(DEVICE)
        parameters = weight.to(DEVICE), bias.to(DEVICE), *running
        sums = [None if each is None else each.to(DEVICE) for each in sums]
        folded = cuda.fold(sums[0], *parameters, parts, 1e-4, 0.1, sums[1])
        found.append((*folded, *running))
    for whole, added in zip(*found, strict=True):
        assert_close(added, whole.double(), 1e-6)
    to_parts = torch.cat([first, second], 2).to(DEVICE)
    moments = found[0][2]
    whole = cuda.fold_gradient(to_parts.sum(0), weight.to(DEVICE), moments, parts)
    for value, wanted in zip(
        cuda.fold_gradient(to_parts, weight.to(DEVICE), moments, parts), whole, strict=True
    ):
        assert_close(value, wanted.double(), 1e-6)


def test_views_that_are_not_contiguous_are_read_right():
    layer = Layer("linear", "fp32", (16, 0, 16))
    expected, _ = layer.forward(cuda)
    layer.x = layer.x.t().contiguous().t()
    layer.weight = layer.weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(layer.forward(cuda)[0], expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("widths", [(16, 0, 16), (16, 80, 7)], ids=str)
def test_weight_gradient_of_many_runs(widths, precision, monkeypatch):
    monkeypatch.setattr("backends.sscn.cuda.gradient.RUN", 32)
    layer = Layer("inverse", precision, widths, count=90, size=14)
    assert layer.exact.forward.rows > 64
    found = layer.to_weight(cuda)
    assert found.dtype == layer.dtype
    assert_close(found, layer.to_weight(reference), BOUNDS[precision])
    assert torch.equal(layer.to_weight(cuda), found)
    assert not splitting.tickets(layer.x).any()


@pytest.fixture(params=[2, 7])
def split_tiles(request, monkeypatch):
    """Have the steps of each tile shared by up to so many programs."""
    monkeypatch.setattr(convolution, "splits", lambda blocks, steps: request.param)
    monkeypatch.setattr(convolution, "LEAST_STEPS", 1)


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse", "ordinary"])
def test_tiles_of_several_programs_agree_with_float64(kind, split_tiles):
    layer = Layer(kind, "fp32", (16, 32, 40), count=70, slope=0.33)
    check_layer(layer, BOUNDS["fp32"])
    assert not splitting.tickets(layer.x).any()


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_tiles_of_several_programs_in_every_precision(precision, split_tiles, switch_tf32):
    switch_tf32(precision)
    check_layer(Layer("submanifold", precision, (16, 0, 16)), BOUNDS[precision])


def test_tiles_of_several_programs_give_the_same_bits(split_tiles):
    layer = Layer("submanifold", "fp32", (16, 16, 80), count=200, size=20)
    for compute in (layer.forward, layer.to_input):
        first = compute(cuda)
        for _ in range(1 if INTERPRETED else 50):  # programs finish in another order
            for once, again in zip(first, compute(cuda), strict=True):
                assert torch.equal(once, again)


@pytest.mark.skipif(INTERPRETED, reason="needs streams")
def test_tickets_of_two_streams_are_apart():
    layer = Layer("submanifold", "fp32", (16, 0, 16), dim=3, size=24, count=2000)
    expected, _ = layer.forward(cuda)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(layer.forward(cuda)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(each, expected) for each in found)


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse", "linear"])
def test_no_sites_give_no_rows_and_zero_gradients(kind):
    keys, order = cuda.sort_sites(torch.empty((0, 4), dtype=torch.int32, device=DEVICE), 8)
    assert keys.shape == order.shape == (0,)
    kernel_map, _ = _connections(kind, keys, 3, 8)
    taps = kernel_map.forward.taps
    x = torch.empty((0, 16), device=DEVICE)
    weight = torch.ones((taps, 16, 8), device=DEVICE)
    out, sums = cuda.convolve(x, None, weight, kernel_map.forward, None, None, None, True)
    assert out.shape == (0, 8)
    assert torch.equal(sums, torch.zeros((2, 8), dtype=torch.float64, device=DEVICE))
    scale = torch.ones(16, device=DEVICE)
    to_x, _, norm = cuda.input_gradient(
        out, weight, kernel_map.backward, kernel_map.mirrored, x, None, scale, scale
    )
    assert to_x.shape == (0, 16)
    assert float(norm.abs().sum()) == 0
    weights = cuda.weight_gradient(x, None, out, kernel_map.forward, None, None)
    assert torch.equal(weights, torch.zeros_like(weight))
    assert cuda.statistics_gradient(out, out, sums).shape == (0, 8)


def test_a_single_site_meets_only_the_centre_tap():
    keys, _ = cuda.sort_sites(torch.tensor([[0, 5, 5]], dtype=torch.int32, device=DEVICE), 8)
    kernel_map = cuda.submanifold_map(keys, 2, 3, 8)
    weight = torch.randn(9, 4, 4, device=DEVICE)
    x = torch.randn(1, 4, device=DEVICE)
    out, _ = cuda.convolve(x, None, weight, kernel_map.forward, None, None, None, False)
    assert torch.allclose(out, x @ weight[4], rtol=1e-5, atol=1e-6)


def test_a_full_block_is_a_dense_convolution():
    size = 6
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(size), torch.arange(size)).int()
    keys, order = cuda.sort_sites(grid.to(DEVICE), size)
    kernel_map = cuda.submanifold_map(keys, 2, 3, size)
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    dense = torch.nn.functional.conv2d(image, weight, padding=1)
    rows = image[0].flatten(1).t().float().to(DEVICE)[order]
    native = weight.flatten(2).permute(2, 1, 0).float().to(DEVICE)
    out, _ = cuda.convolve(rows, None, native, kernel_map.forward, None, None, None, False)
    assert_close(out, dense[0].flatten(1).t().to(DEVICE)[order], BOUNDS["fp32"])


def test_the_same_input_gives_the_same_bits():
    layer = Layer("strided", "fp32", (16, 0, 16))
    for compute in (layer.forward, layer.to_input, lambda each: (layer.to_weight(each),)):
        for once, again in zip(compute(cuda), compute(cuda), strict=True):
            assert torch.equal(once, again)


@pytest.mark.parametrize("slope", [0.0, 0.33])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_whole_network_agrees_with_float64(precision, slope):
    config = UResNetConfig(filters=4, depth=2, reps=1, slope=slope)
    sites = some_sites(1, 2, 8, 40)
    features = torch.rand((len(sites), 1), generator=torch.Generator().manual_seed(2))
    found = []
    for kernel_set, arithmetic in (("reference", "fp64"), ("cuda", precision)):
        engine = adapter.Backend(2, DEVICE, arithmetic, {"kernels": kernel_set})
        net = network.build(engine, config).to(DEVICE, master_dtype(arithmetic))
        network.reset(net, weights.initial(config, 2))
        net.train()
        rows = features.to(DEVICE, master_dtype(arithmetic))
        logits = net(net.tensor(sites, rows, 8, 2))
        logits.double().square().sum().backward()
        gradients = weights.gradients(net)
        joined = torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
        found.append((logits.detach().double(), joined))
    (exact, exact_gradient), (logits, gradient) = found
    assert_close(logits, exact, 3 * BOUNDS[precision])
    if precision == "fp32":  # rounding to 16 bits moves some value through zero at a ReLU
        assert_close(gradient, exact_gradient, 10 * BOUNDS[precision])


def test_a_norm_folded_at_once_is_torchs_norm():
    rows, channels = 50, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, channels), generator=generator).double() * 3 + 5
    towards = torch.randn((2, channels), generator=generator).double()
    gain, offset = torch.randn((2, channels), generator=generator)
    found = []
    for kernel_set, dtype in (("reference", torch.float64), ("cuda", torch.float32)):
        layer = Norm(NormConfig(channels)).to(dtype).to(DEVICE)
        with torch.no_grad():
            layer.norm.weight.copy_(gain)
            layer.norm.bias.copy_(offset)
        before = layer.from_running().scale.clone()
        sums = torch.stack([x.sum(0), x.square().sum(0)]).to(DEVICE).requires_grad_()
        sources = (Rows(x.to(DEVICE, dtype), sums),)
        folded = differentiable(layer.from_batch(sources), sources, load(kernel_set))
        (torch.stack(folded).double() * towards.to(DEVICE)).sum().backward()
        with torch.no_grad():
            *after, _ = layer.from_running()
        assert not torch.equal(before, after[0]), "evaluation still has the old statistics"
        parameters = (layer.norm.weight.grad, layer.norm.bias.grad)
        running = (layer.norm.running_mean, layer.norm.running_var)
        found.append(
            [each.detach() for each in (*folded, sums.grad, *parameters, *running, *after)]
        )
    for exact, value in zip(*found, strict=True):
        assert_close(value, exact.double(), BOUNDS["fp32"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["strided", "linear"])
def test_the_operator_passes_opcheck(kind):
    import backends.sscn.convolution  # noqa: F401 (registers the operator)

    layer = Layer(kind, "fp32", (4, 3, 5), count=12)
    forward, backward, mirrored = layer.tested
    differentiable = (layer.x, layer.skip, layer.weight, layer.scale, layer.shift, layer.residual)
    for each in differentiable:
        each.requires_grad_()
    rest = (forward.tensors, backward.tensors, forward.rows, mirrored, True, 0.33, "cuda")
    torch.library.opcheck(torch.ops.sscn.convolve.default, (*differentiable, *rest))


def test_float64_rows_are_refused():
    rows = torch.zeros((1, 4), dtype=torch.float64, device=DEVICE)
    weight = torch.zeros((1, 4, 4), dtype=torch.float64, device=DEVICE)
    with pytest.raises(Unsupported, match="use kernels=reference"):
        cuda.convolve(rows, None, weight, GatherMap((), 1, 1), None, None, None, False)


def test_shapes_that_do_not_fit_are_refused():
    layer = Layer("strided", "fp32", (4, 3, 5))
    table, norm = layer.tested.forward, (layer.scale, layer.shift)
    wrong = [
        ("take 7 channels, not 4", (layer.x, None, layer.weight, table, *norm, None)),
        ("must have 4 taps", (layer.x, layer.skip, layer.weight[:3], table, *norm, None)),
        ("sources must have", (layer.x, layer.skip[1:], layer.weight, table, *norm, None)),
        (
            "must be 7 values",
            (layer.x, layer.skip, layer.weight, table, norm[0][1:], norm[1], None),
        ),
        ("residual must have", (layer.x, layer.skip, layer.weight, table, *norm, layer.x)),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            cuda.convolve(*arguments, False)
    with pytest.raises(ValueError, match="gradient must have"):
        cuda.weight_gradient(layer.x, layer.skip, layer.grad[1:], table, *norm)
    layer.tested = KernelMap(table, table, False)
    with pytest.raises(ValueError, match="input must have"):
        layer.to_input(cuda)


@pytest.mark.skipif(INTERPRETED, reason="the host never waits in the interpreter")
def test_the_host_waits_once_for_all_levels():
    sites = some_sites(0, 3, 64, 3000, batch=4)
    keys, _ = cuda.sort_sites(sites, 64)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for level in range(4):
            kernel_map = cuda.submanifold_map(keys, 3, 3, 64 >> level)
            x = torch.ones((len(keys), 16), device=DEVICE)
            weight = torch.ones((27, 16, 16), device=DEVICE)
            cuda.convolve(x, None, weight, kernel_map.forward, None, None, None, True)
            keys, _ = cuda.strided_map(keys, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
@pytest.mark.parametrize("training", [False, True])
def test_a_warm_pass_replays_as_a_cuda_graph(training):
    config = UResNetConfig(filters=16, depth=3, reps=1)
    sites = some_sites(1, 3, 64, 9000)
    engine = adapter.Backend(3, DEVICE, "fp32", {"kernels": "cuda"})
    net = network.build(engine, config).to(DEVICE)
    network.reset(net, weights.initial(config, 3))
    net.train(training)
    features = torch.rand((len(sites), 1), device=DEVICE)
    kept = net.tensor(sites, features, 64, 2)

    def run():
        with torch.set_grad_enabled(training):
            logits = net(engine.with_features(kept, features))
            if training:
                net.zero_grad(set_to_none=True)
                logits.square().sum().backward()
        return logits.detach(), [each.grad for each in net.parameters()]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, to_parameters = run()
    features.uniform_()  # another event on the same sites
    graph.replay()
    captured = captured.clone()
    to_parameters = [each if each is None else each.clone() for each in to_parameters]
    expected, exact = run()
    assert torch.equal(captured, expected)
    for value, wanted in zip(to_parameters, exact, strict=True):
        assert (value is None) == (wanted is None)
        assert value is None or torch.equal(value, wanted)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_a_new_number_of_sites_compiles_nothing_new():
    from backends.sscn.cuda.convolution import convolve_tile

    def run(count):
        keys, _ = cuda.sort_sites(some_sites(count, 3, 64, count), 64)
        kernel_map = cuda.submanifold_map(keys, 3, 3, 64)
        x = torch.ones((len(keys), 16), device=DEVICE)
        weight = torch.ones((27, 16, 16), device=DEVICE)
        cuda.convolve(x, None, weight, kernel_map.forward, None, None, None, False)
        return sum(len(cache[0]) for cache in convolve_tile.device_caches.values())

    compiled = run(3000)
    assert [run(count) for count in (3001, 3008, 4096, 5)] == [compiled] * 4


@pytest.mark.skipif(INTERPRETED, reason="needs 10 GB of GPU memory")
@pytest.mark.slow
def test_rows_beyond_two_gigabytes_are_addressed_right():
    rows, channels = 28_000_000, 80  # 2.24e9 values
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of free GPU memory")
    x = torch.zeros((rows, channels), dtype=torch.float16, device=DEVICE)
    x[-70:] = torch.randn(70, channels)
    weight = torch.randn(1, channels, channels, dtype=torch.float16, device=DEVICE)
    out, _ = cuda.convolve(x, None, weight, identity(rows).forward, None, None, None, False)
    assert_close(out[-70:], x[-70:].double() @ weight[0].double(), BOUNDS["fp16"])
    assert int(out[:-70].count_nonzero()) == 0
