import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.errors import BadInput
from harness.profile import explain
from harness.profile.profile import LayerProfile, write_profile
from tests.harness.profile import made

ROOT = Path(__file__).resolve().parents[3]


def slowed(layer, seconds):
    return replace(layer, seconds=layer.seconds + seconds)


def planted(seconds=2e-3):
    """Two profiles of one engine; the second loses time in one layer."""
    layers = [made.STEM, slowed(made.DOWN, seconds), slowed(made.NORM, -1e-4), made.HOST, made.BACK]
    return made.profile(), made.profile(layers=layers, commit="b" * 40)


def test_the_layer_that_became_slower_is_named_first():
    found = explain.explain(*planted())
    first = found.parts[0]
    assert (first.name, first.kind, first.direction) == ("unet.down", "convolution", "forward")
    assert first.difference == pytest.approx(2e-3)
    assert first.share == pytest.approx(2 / 1.9)
    assert "unet.down convolution, forward: +2 ms" in found.reason
    assert found.claim.endswith(", most of it in convolution, forward")
    assert "takes 1.9 ms longer than" in found.claim
    assert found.names == ("sscn aaaaaaaaaa", "sscn bbbbbbbbbb")
    assert found.unexplained == pytest.approx(0, abs=1e-12)


def test_profiles_of_one_engine_in_two_environments_are_named_by_their_versions():
    def found(**versions):
        return explain.display_names([made.profile(), made.profile(versions=versions)])

    first = made.profile(versions={"torch": "2.13.0", "sscn": "1"})
    second = made.profile(versions={"torch": "2.13.0", "sscn": "2"})
    assert explain.explain(first, second).names == ("sscn 1", "sscn 2")
    assert found(torch="2.9.0") == ("sscn torch 2.13.0", "sscn torch 2.9.0")


def test_the_unexplained_difference_is_shown():
    first, second = planted()
    found = explain.explain(first, replace(second, seconds=second.seconds + 3e-3))
    assert found.unexplained == pytest.approx(3e-3)
    assert ("in no layer", pytest.approx(3e-3)) == explain.waterfall_steps(found)[-1]


def test_layers_of_one_engine_only_count_with_their_whole_time():
    fused = [slowed(made.STEM, 1e-3), made.DOWN, made.HOST, made.BACK]
    found = explain.explain(made.profile(), made.profile("other", layers=fused))
    parts = {part.name: part for part in found.parts if part.direction == "forward"}
    assert parts["norm"].after is None
    assert parts["norm"].difference == -made.NORM.seconds
    assert found.names == ("sscn", "other")
    assert all(math.isfinite(part.share) for part in found.parts)  # the cells are as fast


seconds = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=20)


@given(seconds, seconds, st.floats(0.01, 3), st.floats(0.01, 3), st.integers(1, 12))
def test_the_waterfall_ends_at_the_time_of_the_second_cell(before, after, whole, other, most):
    def build(times, total):
        layers = [
            LayerProfile(f"l{i}", 0, "convolution", "forward", 1, value)
            for i, value in enumerate(times)
        ]
        return made.profile(layers=layers, seconds=total, instrumented_seconds=total)

    found = explain.explain(build(before, whole), build(after, other))
    total = whole + math.fsum(difference for _, difference in explain.waterfall_steps(found, most))
    assert total == pytest.approx(other, abs=1e-9)
    sizes = [abs(part.difference) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)


def test_different_questions_cannot_be_explained():
    other = made.profile(cell=made.cell(size=512))
    with pytest.raises(BadInput, match="different questions"):
        explain.explain(made.profile(), other)


def test_the_figure_names_layers_and_both_ends():
    drawn = explain.waterfall(explain.explain(*planted()))
    for text in ("unet.down convolution, forward", "+2 ms", "sscn aaaaaaaaaa", "in no layer"):
        assert text in drawn
    assert "does not begin at zero" in drawn


@pytest.fixture
def folders(tmp_path):
    for name, profile in zip("ab", planted(), strict=True):
        write_profile(profile, tmp_path / name)
    return tmp_path


def compare(*arguments):
    import typer

    from harness.compare.command import compare as command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=True)


def test_the_command_prints_the_table_and_writes_the_page(folders):
    ran = compare(folders / "a", folders / "b", "--explain", "--report", folders / "page")
    assert ran.exit_code == 0, ran.exception
    lines = [line for line in ran.output.splitlines() if line.strip()]
    rows = [
        line for line in lines if "forward" in line and " % " in f"{line} " and "Most" not in line
    ]
    assert rows[0].split()[:3] == ["all", "convolution", "forward"]
    layers = [line for line in rows if line.split()[0] != "all"]
    assert layers[0].split()[:3] == ["unet.down", "convolution", "forward"]
    assert "+2 ms" in layers[0]
    page = (folders / "page" / "index.html").read_text()
    assert "Layers that make the difference" in page
    assert "<svg" in page


def test_the_command_writes_json(folders):
    file = folders / "b" / "profile.json"
    ran = compare(folders / "a", file, "--explain", "--format", "json")
    rows = json.loads(ran.output)
    assert rows[0]["layer"] == "unet.down"
    assert rows[0]["difference_s"] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "needs two profiles"),
        (["a", "nothing"], "names a run or nothing at all; make one with"),
        (["a", "latest"], "names a run or nothing at all"),
        (["a", "run.jsonl"], "is a file of records; make one with: python -m harness profile"),
        (["a", "empty"], "holds no profile.json; make one with"),
        (["a", "broken"], "is not a profile"),
    ],
)
def test_a_file_that_is_no_profile_is_one_sentence(arguments, words, folders, monkeypatch):
    (folders / "run.jsonl").write_text("{}\n")
    (folders / "empty").mkdir()
    (folders / "broken").mkdir()
    (folders / "broken" / "profile.json").write_text("{")
    monkeypatch.chdir(folders)
    ran = compare(*arguments, "--explain")
    assert isinstance(ran.exception, BadInput)
    assert words in str(ran.exception)


def test_gates_are_refused(folders):
    ran = compare(folders / "a", folders / "b", "--explain", "--fail-on", "slower")
    assert isinstance(ran.exception, BadInput)


SLEEPY = '''
"""Our engine with a nap in one layer."""

import time

from backends.contract import Kind
from backends.sscn.adapter import Backend as Awake, Convolution, probe


class Napping(Convolution):
    def forward(self, x):
        time.sleep(2e-3)
        return super().forward(x)


class Backend(Awake):
    name = "sleepy"

    def convolution(self, kind, in_channels, out_channels, kernel_size, level):
        layer = super().convolution(kind, in_channels, out_channels, kernel_size, level)
        if kind is Kind.STRIDED and level == 1:
            layer.__class__ = Napping
        return layer
'''


@pytest.fixture
def sleepy(tmp_path, monkeypatch):
    """An engine from outside, announced by an entry point as any other."""
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    info = tmp_path / "sleepy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sscn_bench.backends]\nsleepy = sleepy\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return "sleepy"


@pytest.mark.slow
def test_a_delay_of_two_milliseconds_is_found(sleepy, tmp_path):
    def harness(*arguments):
        command = [sys.executable, "-m", "harness", *map(str, arguments)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    for backend in ("sscn", sleepy):
        cell = [
            "--backend",
            backend,
            "--size",
            192,
            "--batch",
            1,
            "--phase",
            "forward",
            "--threads",
            1,
        ]
        harness("profile", *cell, "--seconds", 5, "--out", tmp_path / backend)
    told = harness("compare", tmp_path / "sscn", tmp_path / sleepy, "--explain", "--format", "json")
    first, *_ = json.loads(told)
    assert first["layer"] == "unet.below.down"
    assert first["direction"] == "forward"
    assert first["difference_s"] >= 2e-3
