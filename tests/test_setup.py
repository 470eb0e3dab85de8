"""What is missing for the set-up is said in one sentence, by make and by pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PYTHON = """#!/bin/sh
case "$*" in
    *version_info\\[:2\\]*) echo cp311 ;;
    *"import sys"*) exit {old} ;;
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install"*torch*) echo "ERROR: No matching distribution found for torch" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and a Python that does no more than the recipes ask of it."""
    if shutil.which("make") is None:
        pytest.skip("needs make")

    def make(*words, old=0, **variables):
        shutil.copy(ROOT / "Makefile", tmp_path)
        shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
        for name in ("constraints.txt", "pyproject.toml"):
            (tmp_path / name).touch()
        (tmp_path / "backends" / "sscn").mkdir(parents=True)
        python = tmp_path / "python"
        python.write_text(PYTHON.format(old=old))
        python.chmod(0o755)
        return subprocess.run(
            ["make", "demo", f"PYTHON={python}"],
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | variables,
            capture_output=True,
            text=True,
        )

    return make


def said(done):
    """Return what a failed make said, without make's own lines."""
    assert done.returncode == 2, done.stdout
    text = done.stdout + done.stderr
    return [line for line in text.splitlines() if line.startswith(("sscn-bench", "torch"))]


def test_an_old_python_is_one_sentence(clone):
    [line] = said(clone(old=1))
    assert "needs Python 3.11 or newer" in line
    assert "make demo PYTHON=python3.11" in line


def test_no_compiler_is_one_sentence(clone):
    [line] = said(clone(CXX="no-such-compiler"))
    assert "finds no C++ compiler: install g++" in line


def test_no_network_is_one_sentence(clone):
    [line] = said(clone())
    assert "torch cannot be installed" in line
    assert "PIP_FIND_LINKS" in line


def test_without_a_compiler_pip_ends_with_our_sentence(tmp_path):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path, "-Wno-dev"],
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "finds no C++ compiler: install g++" in " ".join(done.stderr.split())
