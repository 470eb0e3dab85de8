"""Every kernel set against the definition of a sparse convolution, written as plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.contract import InvalidBatch
from backends.sscn import convolution, selection
from backends.sscn.kernel_map import KernelMap, axis_bits, demorton
from tests.backends.sscn.sets import COMPILED, needs_cpu

if COMPILED:
    from backends.sscn.cpu import processor

EACH = ["reference"] + (
    [f"cpu/{name}" for name in processor.instruction_sets()] if COMPILED else []
)
examples = settings(max_examples=12, deadline=None)


@pytest.fixture(params=EACH, scope="module")
def kernel_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """A kernel set by name; the C++ one with each instruction set of this processor."""
    name, _, instructions = request.param.partition("/")
    if not instructions:
        yield name
        return
    before = processor.instruction_set()
    processor.use(instructions)
    yield name
    processor.use(before)


@st.composite
def site_sets(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Unique sites of a batch in random order, with the volume's size; few, many or all of it."""
    dim = draw(st.sampled_from([2, 3]))
    size = draw(st.sampled_from([2, 3, 5, 8, 11]))
    batch = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**16))
    share = draw(st.sampled_from([0.0, 0.05, 0.4, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    if share == 1.0:
        size = min(size, 5)
    volume = torch.rand(batch, *[size] * dim, generator=generator) < share
    volume[(0, *[size - 1] * dim)] = True  # a corner, and never nothing at all
    if batch > 1:
        volume[1] = False  # an empty event
    sites = volume.nonzero().int()
    return sites[torch.randperm(len(sites), generator=generator)].contiguous(), size


def some_sites(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return (torch.rand(2, size, size, size, generator=generator) < 0.2).nonzero().int()


def offsets(kernel_size: int, dim: int) -> list[tuple[int, ...]]:
    reach = kernel_size // 2
    return list(itertools.product(range(-reach, reach + 1), repeat=dim))


def sorted_sites(name: str, sites: Tensor, size: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    keys, order = selection.load(name).sort_sites(sites, size)
    return keys, [tuple(row) for row in sites[order].tolist()]


def rows_by_definition(taps: list[dict[int, int]], x: Tensor, weight: Tensor, rows: int) -> Tensor:
    out = torch.zeros(rows, weight.shape[2], dtype=torch.float64)
    for tap, pairs in enumerate(taps):
        for row_out, row_in in pairs.items():
            out[row_out] += x[row_in].double() @ weight[tap].double()
    return out


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().clamp(min=1) if expected.numel() else 1
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=5e-6)


@given(site_sets(), st.sampled_from([1, 3, 5]), st.sampled_from([(1, 5), (16, 16), (20, 33)]))
@examples
def test_submanifold_convolution_is_its_definition(kernel_set, case, kernel_size, channels):
    sites, size = case
    keys, ordered = sorted_sites(kernel_set, sites, size)
    row = {site: i for i, site in enumerate(ordered)}
    taps = [
        {
            i: row[near]
            for i, (event, *at) in enumerate(ordered)
            if (near := (event, *(a + o for a, o in zip(at, offset, strict=True)))) in row
        }
        for offset in offsets(kernel_size, sites.shape[1] - 1)
    ]
    kernels = selection.load(kernel_set)
    kernel_map = kernels.submanifold_map(keys, sites.shape[1] - 1, kernel_size, size)
    x, weight = values(len(sites), channels[0]), values(len(taps), *channels, seed=1)
    expected = rows_by_definition(taps, x, weight, len(sites))
    out, sums = kernels.convolve(x, None, weight, kernel_map.forward, None, None, None, True)
    assert_near(out, expected)
    assert_near(sums, torch.stack([expected.sum(0), expected.square().sum(0)]))


@pytest.mark.parametrize("widths", [(1, 0, 5), (16, 0, 16), (7, 8, 33), (48, 31, 80), (33, 0, 16)])
@pytest.mark.parametrize("slope", [None, 0.0, 0.5])
@needs_cpu
def test_products_of_bf16_lose_nothing_of_numbers_that_it_holds(kernel_set, widths, slope):
    # Small integers and their halves: every product and every sum is exact, in any order.
    if kernel_set != "cpu":
        pytest.skip("the C++ kernels alone round products")
    sites = some_sites(size=7)
    cpu = selection.load("cpu")
    keys, _ = cpu.sort_sites(sites, 7)
    kernel_map = cpu.submanifold_map(keys, 3, 3, 7)
    x_width, skip_width, out_width = widths
    channels, normed = x_width + skip_width, slope is not None

    def integers(*shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, shape, generator=generator).float()

    arguments = (
        integers(len(sites), x_width, seed=0),
        integers(len(sites), skip_width, seed=1) if skip_width else None,
        integers(27, channels, out_width, seed=2),
        kernel_map.forward,
        integers(channels, seed=3) if normed else None,
        integers(channels, seed=4) if normed else None,
        integers(len(sites), out_width, seed=5),
        True,
        slope or 0.0,
    )
    rounding = selection.load("cpu.bf16")
    exact, rounded = cpu.convolve(*arguments), rounding.convolve(*arguments)
    assert torch.equal(rounded[0], exact[0])
    assert torch.equal(rounded[1], exact[1])
    x, skip, weight, _, scale, shift, grad, _, _ = arguments
    back = grad, None, None, x, skip, weight, kernel_map, scale, shift, slope or 0.0
    for one, two in zip(rounding.gradients(*back), cpu.gradients(*back), strict=True):
        assert one is two is None or torch.equal(one, two)


@pytest.mark.parametrize("channels", [(1, 16), (16, 16), (20, 33), (80, 80)])
@needs_cpu
def test_products_of_bf16_are_those_of_rounded_numbers(kernel_set, channels):
    if kernel_set != "cpu":
        pytest.skip("the C++ kernels alone round products")
    sites = some_sites(size=9)
    cpu = selection.load("cpu")
    keys, _ = cpu.sort_sites(sites, 9)
    gather_map = cpu.submanifold_map(keys, 3, 3, 9).forward
    x, weight = values(len(sites), channels[0]), values(27, *channels, seed=1)
    assert not torch.equal(x, x.bfloat16().float())
    expected, _ = selection.load("reference").convolve(
        x.bfloat16().double(), None, weight.bfloat16().double(),
        selection.load("reference").submanifold_map(keys, 3, 3, 9).forward, None, None, None, False,
    )  # fmt: skip
    kernels = selection.load("cpu.bf16")
    out, _ = kernels.convolve(x, None, weight, gather_map, None, None, None, False)
    assert_near(out, expected)


@pytest.mark.parametrize(("dim", "kernel_size", "size"), [(2, 19, 32), (3, 11, 16), (3, 11, 9)])
def test_kernels_that_reach_beyond_the_next_bricks(kernel_set, dim, kernel_size, size):
    # The C++ maps go by bricks of 4 x 4 x 4 or 8 x 8 sites.
    ends = [0, 3, size // 2, size - 1]
    sites = torch.tensor(list(itertools.product([0, 2], *[ends] * dim)), dtype=torch.int32)
    results = []
    for name in ("reference", kernel_set):
        kernels = selection.load(name)
        keys, _ = kernels.sort_sites(sites, size)
        gather_map = kernels.submanifold_map(keys, dim, kernel_size, size).forward
        x, weight = values(len(sites), 2), values(kernel_size**dim, 2, 3, seed=1)
        results.append(kernels.convolve(x, None, weight, gather_map, None, None, None, False)[0])
    assert_near(results[1], results[0].double())


@given(site_sets())
@examples
def test_strided_convolution_and_its_inverse_are_their_definitions(kernel_set, case):
    sites, size = case
    dim = sites.shape[1] - 1
    keys, ordered = sorted_sites(kernel_set, sites, size)
    kernels = selection.load(kernel_set)
    coarse_keys, down = kernels.strided_map(keys, dim)
    bits = axis_bits(size) - 1
    coarse = [tuple(site) for site in demorton(coarse_keys, bits, dim).tolist()]
    assert set(coarse) == {(event, *(a // 2 for a in at)) for event, *at in ordered}
    row = {site: i for i, site in enumerate(coarse)}
    children: list[dict[int, int]] = [{} for _ in range(2**dim)]
    parents: list[dict[int, int]] = [{} for _ in range(2**dim)]
    for i, (event, *at) in enumerate(ordered):
        tap = sum((a % 2) << (dim - 1 - axis) for axis, a in enumerate(at))
        parent = row[(event, *(a // 2 for a in at))]
        children[tap][parent] = i
        parents[tap][i] = parent
    weight = values(2**dim, 6, 17, seed=1)
    x = values(len(sites), 6)
    out, _ = kernels.convolve(x, None, weight, down.forward, None, None, None, False)
    assert_near(out, rows_by_definition(children, x, weight, len(coarse)))
    x = values(len(coarse), 6)
    out, _ = kernels.convolve(x, None, weight, down.backward, None, None, None, False)
    assert_near(out, rows_by_definition(parents, x, weight, len(sites)))


@given(site_sets())
@examples
def test_ordinary_convolution_is_its_definition(kernel_set, case):
    sites, size = case
    dim = sites.shape[1] - 1
    keys, ordered = sorted_sites(kernel_set, sites, size)
    kernels = selection.load(kernel_set)
    reached_keys, kernel_map = kernels.ordinary_map(keys, dim, 3, size)
    reached = [tuple(s) for s in demorton(reached_keys, axis_bits(size), dim).tolist()]
    row = {site: i for i, site in enumerate(ordered)}
    taps = [
        {
            i: row[near]
            for i, (event, *at) in enumerate(reached)
            if (near := (event, *(a + o for a, o in zip(at, offset, strict=True)))) in row
        }
        for offset in offsets(3, dim)
    ]
    assert {i for pairs in taps for i in pairs} == set(range(len(reached)))
    assert sum(map(len, taps)) == sum(
        all(0 <= a + o < size for a, o in zip(at, offset, strict=True))
        for _, *at in ordered
        for offset in offsets(3, dim)
    )
    x, weight = values(len(sites), 3), values(3**dim, 3, 4, seed=1)
    out, _ = kernels.convolve(x, None, weight, kernel_map.forward, None, None, None, False)
    assert_near(out, rows_by_definition(taps, x, weight, len(reached)))


def layer(kernel_set: str, sites: Tensor, size: int, split: tuple[int, int], out_channels: int):
    """A convolution with everything that can be fused: its maps and its float32 arguments."""
    keys, _ = selection.load(kernel_set).sort_sites(sites, size)
    dim = sites.shape[1] - 1
    kernel_map = selection.load(kernel_set).submanifold_map(keys, dim, 3, size)
    rows, channels = len(sites), sum(split)
    return kernel_map, {
        "x": values(rows, split[0], seed=1),
        "skip": values(rows, split[1], seed=2) if split[1] else None,
        "weight": values(3**dim, channels, out_channels, seed=3),
        "scale": values(channels, seed=4),
        "shift": values(channels, seed=5),
        "residual": values(rows, out_channels, seed=6),
    }


def outcome(
    kernel_set: str, kernel_map: KernelMap, arguments: dict[str, Tensor | None], slope: float = 0.0
):
    """The output, the sums, and the gradients of a loss that depends on both."""
    leaves = {
        name: None if value is None else value.clone().requires_grad_()
        for name, value in arguments.items()
    }
    out, sums = convolution.convolve(
        **leaves, kernel_map=kernel_map, statistics=True, slope=slope, kernel_set=kernel_set
    )
    pull = values(*out.shape, seed=7).to(out.dtype)
    loss = (out * pull).sum() + (sums * values(*sums.shape, seed=8)).sum() * 0.01
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}
    return {"out": out.detach(), "sums": sums.detach(), **gradients}


@given(
    site_sets(),
    st.sampled_from([(4, 0), (16, 16), (7, 18)]),
    st.sampled_from([3, 16, 40]),
    st.sampled_from([0.0, 0.33, 1.0]),
)
@examples
def test_fused_layers_and_their_gradients_match_float64(
    kernel_set, case, split, out_channels, slope
):
    kernel_map, arguments = layer(kernel_set, *case, split, out_channels)
    exact_map, _ = layer("reference", *case, split, out_channels)
    exact = {k: None if v is None else v.double() for k, v in arguments.items()}
    expected = outcome("reference", exact_map, exact, slope)
    for name, value in outcome(kernel_set, kernel_map, arguments, slope).items():
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(
            value.double() / scale, expected[name] / scale, rtol=0, atol=5e-6, msg=name
        )


@pytest.mark.parametrize("slope", [0.0, 0.33])
def test_gradients_of_the_reference_are_derivatives(slope):
    generator = torch.Generator().manual_seed(0)
    sites = (torch.rand(2, 4, 4, generator=generator) < 0.5).nonzero().int()
    kernel_map, arguments = layer("reference", sites, 4, (2, 1), 2)
    leaves = {name: value.double().requires_grad_() for name, value in arguments.items()}

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return convolution.convolve(
            **dict(zip(leaves, inputs, strict=True)),
            kernel_map=kernel_map,
            statistics=True,
            slope=slope,
            kernel_set="reference",
        )

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


def test_the_same_input_gives_the_same_bits_on_any_number_of_threads(kernel_set):
    generator = torch.Generator().manual_seed(1)
    sites = (torch.rand(2, 24, 24, 24, generator=generator) < 0.3).nonzero().int()
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            kernel_map, arguments = layer(kernel_set, sites, 24, (16, 16), 16)
            found.append(outcome(kernel_set, kernel_map, arguments))
    finally:
        torch.set_num_threads(threads)
    if kernel_set == "reference":
        found.pop(0)  # torch's own products depend on the number of threads
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dim", [2, 3])
def test_a_repeated_site_is_refused_by_name(kernel_set, dim):
    sites = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    with pytest.raises(InvalidBatch, match=r"\[0, 1, 2.* is given twice"):
        selection.load(kernel_set).sort_sites(sites[:, : dim + 1].contiguous(), 8)


@pytest.mark.parametrize("bad", [[0, 8, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0]])
def test_a_site_outside_the_volume_is_refused(kernel_set, bad):
    sites = torch.tensor([[0, 1, 2, 3], bad], dtype=torch.int32)
    with pytest.raises(InvalidBatch):
        selection.load(kernel_set).sort_sites(sites, 8)


def test_neighbours_are_right_at_the_far_end_of_a_large_batch(kernel_set):
    """Site numbers there exceed 32 bits: 256 events of 768 voxels per side."""
    sites = torch.tensor(
        [[255, 767, 767, 767], [255, 767, 767, 766], [254, 767, 767, 767], [255, 0, 0, 0]],
        dtype=torch.int32,
    )
    kernels = selection.load(kernel_set)
    keys, order = kernels.sort_sites(sites, 768)
    kernel_map = kernels.submanifold_map(keys, 3, 3, 768)
    x = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    out, _ = kernels.convolve(
        x[order], None, torch.ones(27, 1, 1), kernel_map.forward, None, None, None, False
    )
    found = torch.empty(4, 1)
    found[order] = out
    assert found.squeeze(1).tolist() == [11.0, 11.0, 100.0, 1000.0]


def test_no_sites_give_no_rows(kernel_set):
    kernels = selection.load(kernel_set)
    keys, _ = kernels.sort_sites(torch.empty(0, 4, dtype=torch.int32), 8)
    kernel_map = kernels.submanifold_map(keys, 3, 3, 8)
    out, _ = kernels.convolve(
        torch.empty(0, 4), None, torch.ones(27, 4, 6), kernel_map.forward, None, None, None, True
    )
    assert out.shape == (0, 6)


def test_rows_of_another_level_are_refused(kernel_set):
    sites = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]], dtype=torch.int32)
    kernel_map, arguments = layer(kernel_set, sites, 8, (4, 0), 4)
    arguments["x"] = torch.ones(3, 4)
    with pytest.raises(ValueError, match="takes 2 rows"):
        convolution.convolve(**arguments, kernel_map=kernel_map, kernel_set=kernel_set)


@needs_cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(8, 4, 4)}, "taps"),
        ({"weight": torch.ones(27, 5, 4)}, "channels"),
        ({"x": torch.ones(2, 4, dtype=torch.float64)}, "float32"),
        ({"residual": torch.ones(2, 5)}, "residual"),
        ({"scale": torch.ones(3)}, "scale"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_any_memory_is_read(change, message):
    sites = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]], dtype=torch.int32)
    kernel_map, arguments = layer("cpu", sites, 8, (4, 0), 4)
    with pytest.raises(ValueError, match=message):
        convolution.convolve(**arguments | change, kernel_map=kernel_map, kernel_set="cpu")


@pytest.mark.parametrize("split", [(4, 0), (3, 5)])
def test_operators_pass_opcheck(kernel_set, split):
    generator = torch.Generator().manual_seed(2)
    sites = (torch.rand(1, 5, 5, 5, generator=generator) < 0.3).nonzero().int()
    kernel_map, arguments = layer(kernel_set, sites, 5, split, 6)
    leaves = [None if v is None else v.requires_grad_() for v in arguments.values()]
    torch.library.opcheck(
        torch.ops.sscn.convolve,
        (
            *leaves,
            list(kernel_map.forward.tensors),
            list(kernel_map.backward.tensors),
            kernel_map.forward.rows,
            kernel_map.mirrored,
            True,
            0.33,
            kernel_set,
        ),
    )


@given(st.integers(0, 10000), st.integers(1, 20), st.booleans(), st.integers(0, 2**16))
@examples
def test_rows_are_put_in_order_and_back(kernel_set, number, channels, biased, seed):
    kernels = selection.load(kernel_set)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(number, channels, generator=generator)
    order = torch.randperm(number, generator=generator)
    bias = torch.randn(channels, generator=generator) if biased else None
    reordered = kernels.take(rows, order, bias)
    assert torch.equal(reordered, rows[order] if bias is None else rows[order] + bias)
    back = kernels.inverted(order)
    assert torch.equal(order[back], torch.arange(number))
    assert torch.equal(kernels.take(kernels.take(rows, order, None), back, None), rows)


def test_compiled_code_computes_the_same(kernel_set):
    generator = torch.Generator().manual_seed(3)
    sites = (torch.rand(1, 6, 6, 6, generator=generator) < 0.3).nonzero().int()
    kernel_map, arguments = layer(kernel_set, sites, 6, (4, 4), 8)

    def two_layers(x: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
        out, _ = convolution.convolve(x, skip, weight, kernel_map, kernel_set=kernel_set)
        again, _ = convolution.convolve(
            out, None, weight, kernel_map, residual=out, kernel_set=kernel_set
        )
        return again.relu()

    def run(function) -> list[Tensor]:
        leaves = [arguments[name].clone().requires_grad_() for name in ("x", "skip", "weight")]
        out = function(*leaves)
        out.square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    torch.compiler.reset()
    compiled = torch.compile(two_layers, fullgraph=True, backend="aot_eager")
    for found, expected in zip(run(compiled), run(two_layers), strict=True):
        torch.testing.assert_close(found, expected)
