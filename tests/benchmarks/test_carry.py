"""The folder for a GPU machine: what it holds is what the script on that machine finds."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import carry, device
from harness.instruments import machine

ROOT = Path(carry.__file__).parents[1]


def make_wheel(folder, name, requires=(), files=()):
    wheel = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        facts = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {each}" for each in requires)]
        file.writestr(f"{name}-1.dist-info/METADATA", "\n".join(facts))
        for each in files:
            file.writestr(each, each)
    return wheel


def test_a_wheel_needs_neither_its_extras_nor_what_another_python_needs(tmp_path):
    requires = ["attrs>=2", "dask; extra == 'all'", "tomli; python_version < '3.11'"]
    assert carry.needs(make_wheel(tmp_path, "some", requires), "3.12") == ["attrs>=2"]


def test_files_of_a_wheel_are_where_they_are_imported_from(tmp_path):
    wheel = make_wheel(
        tmp_path, "some", files=["some/a.py", "some-1.data/purelib/b.py", "some-1.data/scripts/c"]
    )
    assert {name for name, _ in carry.files_of(wheel)} == {
        "some/a.py", "b.py", "some-1.dist-info/METADATA",
    }  # fmt: skip


def test_packages_of_the_image_are_left_out():
    there = carry.image_packages(carry.IMAGE)
    assert {"torch", "numpy", "pyyaml"} <= there
    assert not {"uproot", "orjson", "spconv-cu126"} & there


def test_the_machine_unpacks_what_was_packed(tmp_path, monkeypatch):
    folder, checkout = tmp_path / "carried", tmp_path / "checkout"
    (folder / "references").mkdir(parents=True)
    (folder / "references" / "one.pt").write_text("reference")
    (checkout / "backends/sscn/cpu").mkdir(parents=True)
    monkeypatch.setattr(device, "ROOT", checkout)
    assert not device.built()
    compiled = f"{device.COMPILED}{device.sysconfig.get_config_var('EXT_SUFFIX')}"
    wheel = make_wheel(tmp_path, "ours", files=[compiled, "backends/a.py"])
    other = make_wheel(tmp_path, "other", files=["other/__init__.py"])
    carry.pack(carry.compiled_of(wheel), folder / "compiled.tar.xz")
    carry.pack(carry.files_of(other), folder / "packages.tar.xz")
    packages, variables = device.unpack(folder, sys.executable, tmp_path / "log")
    assert (packages / "other/__init__.py").read_text() == "other/__init__.py"
    assert not (packages / "backends").exists()
    assert device.built()
    assert (Path(variables["SSCN_BENCH_REFERENCES"]) / "one.pt").read_text() == "reference"


def test_records_of_the_machine_name_the_commit_that_was_carried(tmp_path, monkeypatch):
    ours, copy, carried = tmp_path / "ours", tmp_path / "copy", tmp_path / "commit"
    ours.mkdir()
    (ours / "a.py").write_text("1")
    git = ["git", "-C", str(ours), "-c", "user.name=A", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"],
                  ["commit", "-qm", "second", "--allow-empty"]):  # fmt: skip
        subprocess.run([*git, *words], check=True)
    named = machine.commit(ours)
    assert named[0]
    carry.write_commit(carried, ours)
    shutil.copytree(ours, copy)
    subprocess.run(["git", "-C", str(copy), "reset", "-q", "--soft", "HEAD~1"], check=True)
    outcome, variables = device.restore_commit(carried, tmp_path / "same", copy)
    assert outcome == "ok"
    with monkeypatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        assert machine.commit(copy) == named
    (copy / "a.py").write_text("2")
    assert device.restore_commit(carried, tmp_path / "other", copy) == ("other files", {})
    assert device.restore_commit(tmp_path / "none", tmp_path / "x", copy) == ("not carried", {})
    (ours / "a.py").write_text("3")
    carry.write_commit(carried, ours)
    assert not carried.exists()


def test_every_step_belongs_to_one_command_of_nine_minutes():
    assert device.parse(["out"]).seconds == 540.0
    assert device.parse(["out", "--part", "suites"]).steps == ["build", "inference", "training"]
    steps = [step for part in device.PARTS.values() for step in part if step != "build"]
    assert sorted(steps) == sorted(set(device.DEFAULT_STEPS) - {"build"})


def test_what_is_not_there_is_not_carried(capsys):
    with pytest.raises(SystemExit) as stopped:
        device.parse(["out", "--carried", "no/such/folder"])
    assert stopped.value.code == 2
    assert "there is no folder no/such/folder" in capsys.readouterr().err


COMPILE = """
import sys
from pathlib import Path
import torch
from benchmarks import kernel_cache
from backends.sscn.cuda import norm
each, sums = torch.empty(16), torch.empty((2, 16), dtype=torch.float64)
with kernel_cache.recorded(90) as keys:
    norm.fold(sums, each, each, each, each, 1000, 1e-4, 0.01)
if len(sys.argv) > 1:
    kernel_cache.finish(Path(sys.argv[1]), keys, 90)
"""


LAUNCH = """
from triton.runtime.jit import JITFunction
from benchmarks import kernel_cache
launched = set()
JITFunction.run = lambda kernel, *arguments, grid, warmup, **named: launched.add(kernel.__name__)
kernel_cache.launch("fp32", 1000, [1000] * 5)
print(*launched)
"""


def run(words, cache):
    variables = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_kernels_compiled_ahead_are_not_compiled_again(tmp_path):
    pytest.importorskip("triton")
    ahead, cache = tmp_path / "ahead", tmp_path / "cache"
    ahead.mkdir()
    code, printed = run(["-c", COMPILE, str(ahead)], ahead)
    assert code == 0, printed
    adopt = ["-m", "benchmarks.kernel_cache", "adopt", str(ahead), str(cache)]
    code, printed = run(adopt, cache)
    assert (code, printed.split()) == (0, ["1", "kernels"])
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert any(file.suffix == ".cubin" for file in before)
    code, printed = run(["-c", COMPILE], cache)
    assert code == 0, printed
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == before
    values = json.loads((ahead / "keys.json").read_text())
    (ahead / "keys.json").write_text(json.dumps(values | {"triton": "2.0.0"}))
    code, printed = run(adopt, cache)
    assert code == 1
    assert "compiled by Triton 2.0.0" in printed


def test_the_kernels_of_passes_and_steps_are_compiled_ahead(tmp_path):
    pytest.importorskip("triton")
    code, printed = run(["-c", LAUNCH], tmp_path)
    assert code == 0, printed
    maps = {"_encode", "_count_parents", "coarsen", "search", "list_tiles"}
    assert {*maps, "convolve_tile", "input_gradient_tile", "list_pairs"} <= set(printed.split())
