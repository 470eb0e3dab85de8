"""Every extra resolves on each Python that the documentation claims, and keeps torch."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ROW = re.compile(
    r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \| [^|]+ \| 3\.(\d+)(?: to 3\.(\d+))? \|$", re.M
)
COMPILED = ("minkowski",)
"""Extras without wheels."""


def claims():
    """Yield (extra, Python) as docs/installed.md lists them."""
    for names, first, last in ROW.findall((ROOT / "docs" / "installed.md").read_text()):
        for name in re.findall(r"`([a-z0-9-]+)`", names):
            for minor in range(int(first), int(last or first) + 1):
                yield name, f"3.{minor}"


def test_every_extra_claims_some_python():
    assert {name for name, _ in claims()} == set(EXTRAS)


def test_no_extra_replaces_torch():
    named = [re.split(r"[<>=!;\[ ]", need)[0] for needs in EXTRAS.values() for need in needs]
    assert not {"torch", "torchvision", "ocnn", "torch-lattice"} & set(named)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "python"), [each for each in claims() if each[0] not in COMPILED]
)
def test_an_extra_resolves(extra, python, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--only-binary", ":all:"]
    pip += ["--disable-pip-version-check", "--python-version", python, "--target", str(tmp_path)]
    done = subprocess.run([*pip, *EXTRAS[extra]], capture_output=True, text=True)
    if done.returncode and re.search(
        "ConnectionError|NewConnection|Temporary failure", done.stderr
    ):
        pytest.skip("needs the package index")
    assert done.returncode == 0, done.stderr
