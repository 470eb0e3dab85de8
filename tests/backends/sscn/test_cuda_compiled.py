"""The Triton kernels compile for real GPUs, which needs none: as they are launched, and lean."""

import contextlib
import inspect
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from backends.sscn.cuda import (  # noqa: E402
    blocks,
    conversion,
    convolution,
    jobs,
    launching,
    maps,
    norm,
    splitting,
)
from backends.sscn.deferred_layer import BatchNorm, Folding  # noqa: E402
from backends.sscn.kernel_map import GatherMap, identity  # noqa: E402
from backends.sscn.selection import choose, load  # noqa: E402

# Triton 3.9 announces another default for contracted multiply-adds; either is right here.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

cuda = load("cuda")

SHARED_MEMORY = 99 * 1024
"""Bytes that a block may have on every GPU of compute capability 8.0 and up (8.6 has the least)."""

STACK = 32
"""Bytes a thread that the assembler may put aside; a spilled accumulator takes hundreds."""

TYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@pytest.fixture
def launches(monkeypatch):
    """Record launches instead of running them."""
    recorded = []

    def record(kernel, *arguments, grid, warmup, **constants):
        recorded.append((kernel, arguments, constants))

    monkeypatch.setattr(JITFunction, "run", record)
    return recorded


@pytest.fixture(autouse=True)
def _keep_tf32_switch():
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def compile_launch(launch, capability):
    """Compile a recorded launch with the specialisations that the launcher would choose."""
    kernel, arguments, constants = launch
    options = {key: value for key, value in constants.items() if key not in kernel.arg_names}
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants}
    signature, constants, facts = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPE_NAMES[value.dtype]
            facts[(place,)] = [["tt.divisibility", 16]]
        else:
            assert parameter.do_not_specialize, f"{parameter.name} would compile anew by its value"
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
    source = ASTSource(kernel, signature, constants, facts)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(compiled):
    """Return the bytes of local memory a thread, from the tools that come with Triton."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listed = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"STACK:(\d+)", listed)
    assert found, listed
    return int(found[1])


def check_launches(launches, capability, *expected):
    names = {kernel.__name__ for kernel, _, _ in launches}
    assert names == set(expected)
    for launch in launches:
        compiled = compile_launch(launch, capability)
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert compiled.metadata.shared <= SHARED_MEMORY
        # Memory that Triton's allocator would provide, which a CUDA graph cannot hold.
        assert getattr(compiled.metadata, "global_scratch_size", 0) == 0
        assert stack_bytes(compiled) <= STACK, f"{launch[0].__name__} {launch[2]}"
        constants = launch[2]
        tickets = [constants.get("SPLIT"), constants.get("FOLD") or constants.get("FOLD_FIRST")]
        check_tickets(compiled.asm["ptx"], sum(map(bool, tickets)))


def check_tickets(ptx, number):
    """Check that results are stored before a ticket is taken, and those of others read after it."""
    before, *parts = ptx.split("atom.global.gpu.acq_rel.add.u32")
    assert len(parts) == number
    for after in parts:
        _, _, between = before.rpartition("st.global")
        assert "bar.sync" in between
        of_others = after[: after.index("ld.global.cg")]
        assert "bar.sync" in of_others
        before = after


def map_of(rows, taps):
    tiles = -(-rows // blocks.tile_rows(rows))
    return GatherMap(
        (
            torch.empty((taps, rows), dtype=torch.int32),
            torch.empty(rows, dtype=torch.int64),
            torch.empty((tiles, taps), dtype=torch.int32),
            torch.empty(tiles, dtype=torch.int32),
        ),
        rows,
        taps,
    )


def train_layer(widths, taps, dtype, rows=20000, slope=0.0):
    """Launch all kernels of a training step of one layer."""
    first, second, outputs = widths
    gather_map = map_of(rows, taps) if taps > 1 else identity(rows).forward
    x = torch.empty((rows, first), dtype=dtype)
    skip = torch.empty((rows, second), dtype=dtype) if second else None
    weight = torch.empty((taps, first + second, outputs), dtype=dtype)
    fold = torch.empty(first + second)
    residual = torch.empty((rows, outputs), dtype=dtype)
    of_out = torch.empty(outputs)
    follows = BatchNorm(rows, of_out, of_out, (of_out, of_out), 1e-4, 0.01, slope)
    out, _ = convolution.convolve_in_parts(
        x, skip, weight, gather_map, fold, fold, residual, True, slope,
        norm.Following(follows, [None]),
    )  # fmt: skip
    moments = torch.empty((2, first + second), dtype=torch.float64)
    folding = Folding(fold, fold, moments)
    cuda.input_gradient_through_norm(
        out, weight, gather_map, taps % 2 == 1, x, skip, folding, fold, slope
    )
    cuda.weight_gradient(x, skip, out, gather_map, fold, fold, slope)
    cuda.statistics_gradient(out, out, torch.empty((2, outputs), dtype=torch.float64))


LAYER = (
    "convolve_tile",
    "transpose_weights",
    "input_gradient_tile",
    "list_pairs",
    "weight_gradient_share",
    "add_statistics_gradient",
)


@pytest.mark.parametrize(
    ("capability", "dtype", "tf32", "slope", "rows"),
    [
        (80, torch.float32, False, 0.0, 1000),
        (90, torch.float32, True, 0.33, 20000),
        (80, torch.float16, False, 0.33, 20000),
        (90, torch.bfloat16, False, 0.0, 1000),
    ],
)
def test_a_training_step_of_a_layer(launches, capability, dtype, tf32, slope, rows):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    train_layer((16, 16, 16), 27, dtype, rows, slope)
    check_launches(launches, capability, *LAYER)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ],
)
@pytest.mark.parametrize("rows", [1000, 20000])
@pytest.mark.parametrize(
    ("widths", "taps"),
    [
        ((1, 0, 16), 27),
        ((48, 0, 48), 27),
        ((64, 64, 64), 27),
        ((80, 0, 80), 27),
        ((96, 0, 96), 27),
        ((128, 0, 128), 27),
        ((160, 0, 160), 27),
        ((64, 0, 80), 8),
        ((80, 0, 64), 8),
        ((64, 64, 64), 1),
        ((16, 0, 5), 1),
    ],
    ids=str,
)
def test_every_width(launches, capability, dtype, tf32, rows, widths, taps):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    train_layer(widths, taps, dtype, rows)
    check_launches(launches, capability, *(LAYER if taps > 1 else set(LAYER) - {"list_pairs"}))


@pytest.mark.parametrize("capability", [80, 90])
def test_the_building_of_maps(launches, capability, monkeypatch):
    monkeypatch.setattr(maps, "_read", lambda ends: [5000, 900, *[9] * 9, 0])
    keys, _ = cuda.sort_sites(torch.zeros((5000, 4), dtype=torch.int32), 768)
    cuda.submanifold_map(keys, 3, 3, 768)
    cuda.strided_map(keys, 3)
    cuda.ordinary_map(keys[:9], 3, 3, 768)
    ends = torch.empty((20, 12), dtype=torch.int32)
    jobs = {"JOBS": 16, "TAPS": 27, "ROWS": 64, "LEAST": 16384, "SMALL": 32, "LARGE": 64}
    maps.coarsen[(20,)](
        keys, ends, keys, keys, 5000, DIM=3, LEVELS=5, COLUMNS=12, BLOCK=maps.BLOCK,
        ALIGNED=maps.ALIGNED, **jobs,
    )  # fmt: skip
    check_launches(
        launches, capability, "_encode", "_count_parents", "coarsen", "search", "list_tiles",
        "_reach",
    )  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90])
def test_the_norm(launches, capability):
    each, sums = torch.empty(48), torch.empty((2, 48), dtype=torch.float64)
    _, _, moments = norm.fold(sums, each, each, each, each, 1000, 1e-4, 0.01)
    both, half = torch.empty(96), torch.empty((9, 2, 48), dtype=torch.float64)
    norm.fold(half, both, both, both, both, 1000, 1e-4, 0.01, half)
    norm.fold_gradient(moments, each, moments, 1000)
    norm.fold_gradient(torch.empty((5000, 2, 48), dtype=torch.float64), each, moments, 1000)
    check_launches(launches, capability, "fold_channels", "fold_channels_gradient", "add_groups")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_conversion_of_weights(launches, dtype):
    jobs, weight, converted = torch.empty((2, 4)).long(), torch.empty(9), torch.empty(9).to(dtype)
    conversion.convert_all_weights[(2,)](jobs, weight, converted, 2, BLOCK=conversion.BLOCK)
    check_launches(launches, 80, "convert_all_weights")


@pytest.mark.parametrize(
    ("outputs", "columns"), [(1, 16), (16, 16), (48, 64), (80, 128), (128, 128), (160, 32)]
)
def test_columns_pad_little_and_gather_once_where_they_can(outputs, columns):
    shape = blocks.convolution_blocks(64, (64,), outputs, torch.float16, "ieee")
    assert shape.columns == columns


@given(blocks_of_sums=st.integers(1, 5000), steps=st.integers(0, 1000))
def test_steps_are_split_only_where_programs_are_few(blocks_of_sums, steps):
    parts = blocks.splits(blocks_of_sums, steps)
    assert parts >= 1
    assert blocks.workspace_size(blocks_of_sums, 1, 512) == 0
    if parts > 1:
        assert blocks_of_sums * parts <= blocks.PROGRAMS
        assert steps >= parts * blocks.LEAST_STEPS
        assert blocks_of_sums <= splitting.OF_LAUNCH
        assert blocks.workspace_size(blocks_of_sums, parts, 512) == blocks_of_sums * parts * 512


@given(runs=st.integers(1, 10**6), blocks_of_sums=st.integers(1, 5000))
def test_shares_of_runs_cover_them_all(runs, blocks_of_sums):
    share = blocks.runs_per_share(runs, blocks_of_sums)
    shares = -(-runs // share)
    assert shares == 1 or shares * blocks_of_sums <= blocks.PRODUCT_PROGRAMS
    assert shares == 1 or jobs.MOST * blocks_of_sums <= splitting.OF_LAUNCH


@pytest.mark.parametrize(
    ("sources", "depth"), [((1,), 16), ((48,), 16), ((96,), 32), ((64, 64), 64), ((64, 48), 16)]
)
def test_a_product_never_crosses_sources(sources, depth):
    assert blocks.convolution_blocks(64, sources, 64, torch.float16, "ieee").depth == depth


def test_the_arithmetic_follows_the_switch_of_torch():
    torch.backends.cuda.matmul.allow_tf32 = True
    assert blocks.dot_precision(torch.float32) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False
    assert blocks.dot_precision(torch.float32) == "ieee"
    assert blocks.dot_precision(torch.bfloat16) == "ieee"


@pytest.mark.skipif(not blocks.HAS_FP32_PRECISION, reason="torch has only the older interface")
def test_the_arithmetic_follows_the_newer_interface_of_torch():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for setting, arithmetic in (("tf32", "tf32"), ("ieee", "ieee")):
            matmul.fp32_precision = setting
            assert blocks.dot_precision(torch.float32) == arithmetic
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, value in vars(type(cuda)).items()
        if isinstance(value, staticmethod) and name not in ("inverted", "take")  # these are torch's
    ),
)
@pytest.mark.parametrize(("current", "entered"), [(0, [1]), (1, [])])
def test_launches_happen_on_the_device_of_the_tensors(name, current, entered, monkeypatch):
    class Elsewhere:
        device = torch.device("cuda", 1)

    found = []

    @contextlib.contextmanager
    def enter(device):
        found.append(device.index)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", enter)
    function = getattr(cuda, name)
    others = len(inspect.signature(function).parameters) - 1
    with pytest.raises((AttributeError, TypeError)):  # there is no such tensor to compute with
        function(Elsewhere(), *[None] * others)
    assert found == entered


def test_kernels_are_chosen_for_the_gpu_that_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capabilities = {"cuda": (9, 0), "cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    for device, kernels in (("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:1", "reference")):
        assert choose("auto", device, torch.float32) == kernels
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more"):
        choose("cuda", "cuda:1", torch.float32)


@pytest.mark.parametrize("versions", [("3.6.0", "2.4.6"), ("3.4.0", "3.0.0")])
def test_versions_with_which_the_interpreter_fails_are_refused(versions):
    with pytest.raises(ImportError, match=r"install Triton 3\.7 or later, or a NumPy before 2\.4"):
        launching.check_interpreter(*versions)


@pytest.mark.parametrize("versions", [("3.6.0", "2.3.5"), ("3.7.0", "2.4.6"), ("3.10.0", "2.10.0")])
def test_other_versions_are_accepted(versions):
    launching.check_interpreter(*versions)


def test_the_reason_why_the_kernels_cannot_run_is_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need an NVIDIA GPU, or TRITON_INTERPRET=1"):
        choose("cuda", "cuda", torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more"):
        choose("cuda", "cuda", torch.float32)
    assert choose("auto", "cuda", torch.float32) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("auto", "cuda", torch.float32) == "cuda"
    assert choose("auto", "cuda", torch.float64) == "reference"
    with pytest.raises(ValueError, match="use kernels=reference for float64"):
        choose("cuda", "cuda", torch.float64)
    with pytest.raises(ValueError, match="need an NVIDIA GPU"):
        choose("cuda", "cpu", torch.float32)
