"""Packages of an asv environment: from the commit's wheel, and from the code that runs asv."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

environment = pytest.importorskip("harness.asv.environment")

COMMIT = "0123456789abcdef"


@pytest.fixture
def empty(tmp_path):
    """An environment whose virtual environment exists, without any commit."""
    made = object.__new__(environment.SharedEnvironment)
    made._path = str(tmp_path / "env")
    venv.create(made._path, with_pip=False)
    environment.borrowed_file(Path(made._path)).write_text(environment.borrowed_paths())
    return made


def installing(monkeypatch, *names):
    """Stand in for asv's own installation of a wheel with some packages."""

    def install(self, repo, commit_hash, build_dir):
        for name in names:
            folder = environment.packages(Path(self._path)) / name
            folder.mkdir()
            (folder / "__init__.py").write_text(f"COMMIT = {commit_hash!r}\n")

    monkeypatch.setattr(environment.environment.Environment, "_install_project", install)


def test_engines_are_the_commits_and_the_harness_is_the_one_that_runs_asv(empty, monkeypatch):
    installing(monkeypatch, "backends", "harness", "suites")
    empty._install_project(None, COMMIT, "")
    code = (
        "import backends, harness, numpy, suites; "
        "print(backends.COMMIT, harness.__file__, suites.__file__, numpy.__file__, sep='\\n')"
    )
    python = Path(empty._path, "bin", "python")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, cwd=empty._path
    )
    commit, *files = done.stdout.splitlines()
    assert commit == COMMIT
    borrowed = Path(sysconfig.get_path("purelib"))
    assert [Path(file).parent for file in files] == [
        environment.ROOT / "harness",
        environment.ROOT / "suites",
        borrowed / "numpy",
    ]


def test_a_wheel_without_engines_is_refused_instead_of_measuring_these(empty, monkeypatch):
    installing(monkeypatch, "harness", "suites")
    with pytest.raises(environment.UserError, match="0123456789ab has no package backends"):
        empty._install_project(None, COMMIT, "")


def test_the_code_of_an_installed_commit_is_named_by_asv(tmp_path):
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").touch()
    code = (
        "import sys; "
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]; "
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(environment.ROOT)!r}]; "
        "from harness.run.source import EngineSource; c = EngineSource.imported(); "
        "print(c.root, c.commit)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"ASV_COMMIT": COMMIT},
    )
    assert done.stdout.split() == [str(tmp_path.resolve()), COMMIT]
