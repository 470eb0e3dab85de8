"""Engines are installed in environments of their own, whole or not at all."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backends import environments, registry
from harness.engines import install as installing
from harness.engines import recipe as recipes
from harness.engines.install import cause, install
from harness.engines.recipe import Recipe
from harness.errors import BadInput
from tests.harness.processes import gone, interrupt_the_next_start

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sscn-bench" / "engines"


def harness(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_of_a_known_engine_and_complete(name):
    assert name in registry.BUILT_IN
    found = Recipe.find(name)
    assert found.engine == name
    assert found.imports.isidentifier()
    assert set(found.devices) <= {"cpu", "cuda"}
    assert found.requires or found.source
    assert all("{" not in need for need in found.requires)
    assert not found.source or re.fullmatch("[0-9a-f]{40}", found.source["commit"])
    assert set(found.build) <= {
        *("requires", "programs", "libraries", "headers", "options", "environment", "minutes"),
        "torch",
    }


def test_a_version_and_a_cuda_choose_the_package():
    assert Recipe.find("spconv==2.3.6").requires == ("spconv==2.3.6",)
    assert Recipe.find("spconv", "12.6").requires == ("spconv-cu126==2.3.8",)
    old = Recipe.find("spconv", "12.0")
    assert (old.requires, old.python) == (("spconv-cu120==2.3.6",), ("3.11", "3.11"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nonesuch"], "there is no recipe for 'nonesuch'; choose one of flex-gemm, fvdb"),
        (["spconv=2.3"], "there is no recipe for 'spconv=2.3'"),
        (["spconv", "--cuda", "9.0"], "spconv has no build for CUDA 9.0; choose one of 12.0"),
        (["torch-lattice", "--torch", "2.4"], "torch-lattice needs torch 2.11, not 2.4"),
        (["sparseconvnet", "--source", "nowhere"], "there is no folder nowhere"),
        (["sparseconvnet==9"], "the recipe builds sparseconvnet 0.2; give the source of 9 with"),
        (["warpconvnet"], "needs nvcc, which is not here"),
    ],
)
def test_what_cannot_be_installed_is_one_sentence(words, sentence, cache):
    done = harness("engines", "install", *words, PATH=str(Path(sys.executable).parent), CXX="true")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert sentence in line or ("warpconvnet" in words and "which is not here" in line)
    assert not list(cache.glob("*@*"))


def test_another_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    with pytest.raises(BadInput, match=r"spconv 2.3.8 needs Python 3.11 to 3.13, and this is 3.10"):
        install(Recipe.find("spconv"), None, print)


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="is compiled and needs no-such-compiler"):
        install(Recipe.find("minkowski"), None, print)


@pytest.mark.parametrize("here", ["2.14.1+cu130", "2.13.0", "2.4"])
@pytest.mark.parametrize("wanted", ["", "2.14", "2.13"])
def test_a_torch_that_the_source_does_not_compile_with_is_refused(
    here, wanted, monkeypatch, cache, tmp_path
):
    version = installing.importlib.metadata.version
    monkeypatch.setattr(
        installing.importlib.metadata, "version", lambda n: here if n == "torch" else version(n)
    )
    monkeypatch.setattr(installing, "_Steps", lambda *_: Steps())
    source = tmp_path / "source"
    source.mkdir()
    found = Recipe.find("sparseconvnet", torch=wanted)
    torch = wanted or here.partition("+")[0]
    if "2.14" in torch:
        sentence = f"compiles with torch up to 2.13, not with {torch}; give --torch 2.13$"
        with pytest.raises(BadInput, match=sentence):
            install(found, source, print)
        assert not list(cache.glob("*@*"))
    else:
        install(found, source, print)


def test_a_header_that_is_missing_is_named_with_its_package(monkeypatch):
    found = Recipe.find("torchsparse")
    build = {"headers": {"no/such/header": "libnone-dev"}}
    with pytest.raises(BadInput, match="needs the header no/such/header: install libnone-dev"):
        install(dataclasses.replace(found, build=build), None, print)


class Steps:
    """Steps that write an environment and install nothing; one of them may fail."""

    def __init__(self, failing=""):
        self.failing, self.titles = failing, []

    def run(self, title, command, variables=None):
        self.titles.append(title)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
        if self.failing and self.failing in title:
            raise BadInput("it failed")
        if "freeze" in command:
            return "torch==2.13.0\nspconv==2.3.6\n"
        if "versions" in command:
            return "WARNING: x\nspconv (2.3.8)\nAvailable versions: 2.3.8, 2.3.6\n"
        return "x\n30 of 30 passed\n"

    pip = run


def test_an_installation_is_registered_with_its_lock_and_proof(monkeypatch, cache):
    monkeypatch.setattr(installing, "_Steps", lambda *_: Steps())
    made = install(Recipe.find("spconv==2.3.6"), None, print)
    assert (made.name, made.torch, made.proof) == ("spconv@2.3.6", "2.13.0", "30 of 30 passed")
    assert environments.installed() == {made.name: made}
    assert "spconv==2.3.6" in (made.path / installing.LOCK_FILE).read_text()
    with pytest.raises(BadInput, match="is installed already; remove it first"):
        install(Recipe.find("spconv==2.3.6"), None, print)
    installing.remove(made.name)
    assert not made.path.exists()
    with pytest.raises(BadInput, match=r"'spconv@2.3.6' is not installed .*; installed: none"):
        installing.remove(made.name)


def test_a_version_that_does_not_exist_is_found_out_before_torch_is_fetched(monkeypatch, cache):
    steps = Steps()
    monkeypatch.setattr(installing, "_Steps", lambda *_: steps)
    with pytest.raises(BadInput, match=r"no spconv 2.3.7 for Python .*; it has 2.3.8, 2.3.6$"):
        install(Recipe.find("spconv==2.3.7"), None, print)
    assert not any("torch" in title for title in steps.titles)
    assert not list(cache.glob("*@*"))


@pytest.mark.parametrize(
    ("given", "sentence"), [(False, "it failed"), (True, "which this source lacks")]
)
def test_a_source_that_is_missing_is_found_out_before_torch_is_fetched(
    given, sentence, monkeypatch, cache, tmp_path
):
    steps = Steps("clones")
    monkeypatch.setattr(installing, "_Steps", lambda *_: steps)
    monkeypatch.setattr(installing, "_refuse", lambda *_: None)
    source = tmp_path / "another"
    source.mkdir()
    with pytest.raises(BadInput, match=sentence):
        install(Recipe.find("sparseconvnet", "12.6"), source if given else None, print)
    assert not any("torch" in title for title in steps.titles)
    assert not list(cache.glob("*@*"))


@pytest.mark.parametrize("source", [False, True])
def test_a_compiled_engine_is_built_with_the_torch_of_its_environment(
    source, monkeypatch, tmp_path
):
    steps, built = Steps(), []
    run = steps.run

    def watched(title, words, variables=None):
        built.extend(words if "compiles" in title else ())
        return run(title, words, variables)

    steps.pip = watched
    monkeypatch.setattr(installing, "_Steps", lambda *_: steps)
    monkeypatch.setattr(installing, "_refuse", lambda *_: None)
    monkeypatch.setattr(installing, "_find_versions", lambda *_: None)
    install(Recipe.find("minkowski"), tmp_path if source else None, print)
    # Neither a wheel of the index, nor one that pip has kept, nor a torch of the build's own.
    wanted = {"--no-build-isolation", "--no-cache-dir", "--no-binary=MinkowskiEngine"}
    assert wanted < set(built)
    assert built[-1] == (str(tmp_path) if source else "MinkowskiEngine==0.5.4")


COMPILED_FOR_CUDA = [
    *("flex-gemm", "fvdb", "minkowski", "sparseconvnet", "spira", "torchsparse", "warpconvnet")
]


@pytest.mark.parametrize("name", COMPILED_FOR_CUDA)
@pytest.mark.parametrize("own", ["", "8.6"])
def test_a_build_for_cuda_names_the_gpus(name, own, monkeypatch, tmp_path):
    """Without the list, torch compiles for the GPU of this machine, or for every GPU."""
    found = Recipe.find(name, "" if Recipe.find(name).devices == ("cuda",) else "12.6")
    found = dataclasses.replace(found, build={**found.build, "edits": []})
    steps, seen = Steps(), []

    def watched(title, words, variables=None):
        if "compiles" in title:
            seen.append(variables["TORCH_CUDA_ARCH_LIST"])
        return steps.run(title, words, variables)

    steps.pip = watched
    monkeypatch.setattr(installing, "_Steps", lambda *_: steps)
    monkeypatch.setattr(installing, "_refuse", lambda *_: None)
    monkeypatch.setattr(installing, "_find_versions", lambda *_: None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", own)
    source = tmp_path / "source"
    source.mkdir()
    install(found, source, print)
    [gpus] = seen
    if own:
        assert gpus == own
    else:
        assert re.fullmatch(r"(\d+\.\d;)*9\.0(a|\+PTX)", gpus)


def test_recipes_that_compile_for_cuda_are_tested():
    compiled = [name for name in recipes.names() if Recipe.find(name, "12.6").build]
    assert compiled == COMPILED_FOR_CUDA


@pytest.mark.parametrize("own", ["", "8.6"])
def test_a_build_for_cuda_needs_no_gpu(own, monkeypatch, tmp_path):
    """The source is edited, and torch needs a list of GPUs, which the user may choose."""
    steps, seen = Steps(), []

    def watched(title, words, variables=None):
        if "compiles" in title:
            seen.append(
                (Path(words[-1], "setup.py").read_text(), variables.get("TORCH_CUDA_ARCH_LIST"))
            )
        return steps.run(title, words, variables)

    steps.pip = watched
    monkeypatch.setattr(installing, "_Steps", lambda *_: steps)
    monkeypatch.setattr(installing, "_refuse", lambda *_: None)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if own:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", own)
    source = tmp_path / "source"
    source.mkdir()
    setup = source / "setup.py"
    setup.write_text("CUDAExtension() if torch.cuda.is_available()  else CppExtension()")
    install(Recipe.find("sparseconvnet", "12.6"), source, print)
    assert seen == [("CUDAExtension() if True else CppExtension()", own or "7.5;8.0;9.0+PTX")]
    installing.remove("sparseconvnet@0.2")
    setup.write_text("another source")
    with pytest.raises(
        BadInput, match=r"in setup.py, which this source lacks; give that of commit"
    ):
        install(Recipe.find("sparseconvnet", "12.6"), source, print)
    install(Recipe.find("sparseconvnet"), source, print)  # for the CPU nothing is changed


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("release 13.0, V13.0.88", "compiles with CUDA 11.0 to 11.8, and the nvcc here is 13.0"),
        ("", "the nvcc here is of no known version"),
    ],
)
def test_a_compiler_of_cuda_that_the_recipe_excludes_is_refused(
    said, sentence, monkeypatch, tmp_path
):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '{said}'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BadInput, match=sentence):
        install(Recipe.find("minkowski", "12.6"), tmp_path, print)


@pytest.mark.parametrize("failing", ["environment", "torch", "installs spconv", "float64"])
def test_a_step_that_fails_leaves_nothing(failing, monkeypatch, cache):
    monkeypatch.setattr(installing, "_Steps", lambda *_: Steps(failing))
    with pytest.raises(BadInput, match="it failed"):
        install(Recipe.find("spconv"), None, print)
    assert not list(cache.glob("*@*"))


def test_what_a_killed_installation_has_left_is_replaced(monkeypatch, cache):
    (cache / "spconv@2.3.8" / "lib").mkdir(parents=True)
    assert environments.installed() == {}
    monkeypatch.setattr(installing, "_Steps", lambda *_: Steps())
    made = install(Recipe.find("spconv"), None, print)
    assert not (made.path / "lib").exists()


def test_a_build_that_is_stopped_leaves_no_process_and_nothing_but_its_log(cache, monkeypatch):
    pid = cache.parent / "pid"
    # A compiler that ninja starts is in a process group of its own.
    start = f"set -m; sleep 600 & echo $! > {pid}; kill -INT $PPID; wait"
    run = installing._Steps.run

    def stopped(self, title, command, variables=None):
        making = ["mkdir", "-p", command[-1]]
        return run(self, title, ["bash", "-c", start] if "torch" in title else making, variables)

    monkeypatch.setattr(installing._Steps, "run", stopped)
    monkeypatch.setattr(installing, "_find_versions", lambda *_: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            install(Recipe.find("spconv"), None, print)
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone(int(pid.read_text()))
    assert sorted(path.name for path in cache.iterdir()) == [".spconv.lock", "logs"]
    assert "$ " in (cache / "logs" / "spconv@2.3.8.log").read_text()


def test_an_interrupt_while_a_command_starts_leaves_no_process(tmp_path, monkeypatch):
    started = interrupt_the_next_start(monkeypatch)
    step = installing._Steps(tmp_path, tmp_path / "log", print)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            step.run("", ["sleep", "600"])
    finally:
        signal.signal(signal.SIGINT, before)
        started[0].kill()
    assert started[0].returncode == -signal.SIGKILL  # and has been waited for


PIP = "  error: subprocess-exited-with-error\n  exit code: 1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nERROR: Could not find a version\nERROR: No matching distribution found for x==9\n",
         "No matching distribution found for x==9"),
        ("WARNING: NewConnectionError(...)\nERROR: No matching", "there is no network"),
        ("fatal: unable to access: Could not resolve host: x\n", "there is no network"),
        ("conv.cpp:3:1: error: expected ';'\nmake: *** [all] Error 1", "conv.cpp:3:1: error: exp"),
        (f"{PIP}      a.cpp:1:2: error: #error\nERROR: Failed", "a.cpp:1:2: error: #"),
        (f"{PIP}      c++: fatal error: Killed signal\nERROR: Failed", "c++: fatal error: Killed"),
        (f"{PIP}      OSError: no CUDA_HOME\nERROR: Failed", "OSError: no CUDA_HOME"),
        ("ok     a\nWRONG  cpu fp32 3D: x: y\nz: 1 of 2 checks passed", "WRONG  cpu fp32 3D: x: y"),
        ("", "no output"),
    ],
)  # fmt: skip
def test_the_cause_of_a_failure_is_found_in_its_output(text, said):
    assert cause(text).startswith(said)


@pytest.mark.slow
def test_a_version_that_no_index_has_is_one_sentence(cache):
    done = harness("engines", "install", "spconv==0.0.1")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "there is no spconv 0.0.1 for Python" in line or "network" in line
    assert not list(cache.glob("*@*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_older_spconv_is_installed_proved_and_measured(cache, tmp_path):
    done = harness("engines", "install", "spconv==2.3.6")
    if "there is no network" in done.stderr or sys.version_info[:2] != (3, 11):
        pytest.skip("needs the package index and Python 3.11")
    assert done.returncode == 0, done.stderr
    assert "30 of 30 checks passed" in done.stdout
    out = tmp_path / "run.jsonl"
    words = ("--size", "192", "--budget", "0.1", "--out", str(out))
    done = harness("run", "demo", "--backend", "spconv@2.3.6", "--backend", "sscn", *words)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["outcome"] for r in found} == {"ok"}
    versions = {
        r["versions"]["spconv@2.3.6"] for r in found if r["cell"]["backend"] == "spconv@2.3.6"
    }
    assert versions == {"2.3.6"}
    assert harness("engines", "remove", "spconv@2.3.6").returncode == 0
