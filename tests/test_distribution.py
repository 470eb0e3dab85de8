"""The wheel and the source archive, each installed and used outside the clone."""

import importlib.util
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test builds the archives


def completed(*command, cwd):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Both archives, built from the files that git tracks."""
    pytest.importorskip("build")
    pytest.importorskip("scikit_build_core")
    folder = tmp_path_factory.mktemp("archives")
    tree = folder / "tree"
    tracked = completed("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    completed(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", tree),
        cwd=folder,
    )
    return {path.suffix: path for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module", params=[".whl", ".gz"], ids=["wheel", "source"])
def installed(archives, request, tmp_path_factory):
    """An environment with the archive, the dependencies of this one, and nothing of the clone."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    packages = Path(
        completed(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    )
    # A plain path file: the finder of an editable installation is not started through it.
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    (packages / "dependencies.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    completed(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
        *("--no-build-isolation", "--no-index", archives[request.param]),
        cwd=folder,
    )
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def empty(installed, tmp_path_factory):
    """An empty folder that holds a short run of the suite demo."""
    folder = tmp_path_factory.mktemp("empty")
    completed(
        *(installed / "sscn-bench", "run", "demo", "--backend", "sscn"),
        *("--size", "192", "--budget", "0.05"),
        cwd=folder,
    )
    return folder


def test_the_backend_of_spine_is_registered_where_a_variable_selects_it(installed, tmp_path):
    code = "import sys; print('backends.spine' in sys.modules)"
    for value, expected in (("sscn_bench", "True"), ("minkowski", "False")):
        command = ("env", f"SPINE_SPARSE_BACKEND={value}", installed / "python", "-c", code)
        assert completed(*command, cwd=tmp_path).strip() == expected


def test_the_packages_come_from_the_installation(installed, tmp_path):
    for name in ("backends", "harness", "suites"):
        code = f"import {name}; print({name}.__file__)"
        place = completed(installed / "python", "-c", code, cwd=tmp_path)
        assert Path(place.strip()).is_relative_to(installed.parent)
    code = "import backends.sscn.cpu as cpu; print(cpu.__file__)"
    place = completed(installed / "python", "-c", code, cwd=tmp_path)
    assert list(Path(place.strip()).parent.glob("_kernels*.so"))


def test_engines_are_listed(installed, tmp_path):
    assert "sscn" in completed(installed / "sscn-bench", "backends", cwd=tmp_path)


def test_files_of_the_folder_do_not_hide_the_packages(installed, tmp_path):
    for name in ("harness", "suites", "backends"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    assert "demo" in completed(installed / "sscn-bench", "suites", cwd=tmp_path)
    assert "sscn" in completed(installed / "sscn-bench", "engines", cwd=tmp_path)


def test_an_engine_is_proved(installed, tmp_path):
    said = completed(installed / "sscn-bench", "engines", "prove", "sscn", cwd=tmp_path)
    assert "checks passed" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("compare", "baseline"), "part of a clone of sscn-bench"),
        (("run", "demo", "--backend", "sscn", "--against", "main"), "needs a clone of sscn-bench"),
    ],
)
def test_what_needs_a_clone_says_so(installed, tmp_path, words, sentence):
    done = subprocess.run(
        [installed / "sscn-bench", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert sentence in line


def test_a_run_is_compared_on_a_page(installed, empty):
    (run,) = (empty / "results" / "runs").glob("*.jsonl")
    assert '"outcome":"ok"' in run.read_text()
    completed(installed / "sscn-bench", "compare", "latest", "--report", "report", cwd=empty)
    assert "sscn" in (empty / "report" / "index.html").read_text()


def test_the_history_of_the_run_is_shown(installed, empty):
    completed(installed / "sscn-bench", "history", "--report", "history", cwd=empty)
    assert (empty / "history" / "history.html").exists()


def test_an_event_is_drawn(installed, empty):
    completed(
        *(installed / "sscn-bench", "events", "view", "sample", "--size", "192"),
        *("--out", "event.html"),
        cwd=empty,
    )
    assert (empty / "event.html").stat().st_size > 10_000


def test_a_cell_is_profiled(installed, empty):
    completed(
        *(installed / "sscn-bench", "profile", "--backend", "sscn", "--size", "192"),
        *("--batch", "1", "--phase", "forward", "--out", "profile"),
        cwd=empty,
    )
    assert (empty / "profile" / "index.html").exists()
