"""The documented gate for pull requests, on a clone with a slow-down put into an engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SLOWER_BY_A_TENTH = """

import time as _time


def _begins(make):
    def begin(self, *arguments):
        self._began = _time.perf_counter()
        return make(self, *arguments)

    return begin


def _end(self, x, _features=Backend.features):
    rows = _features(self, x)
    until = _time.perf_counter() + 0.1 * (_time.perf_counter() - self._began)
    while _time.perf_counter() < until:
        pass
    return rows


Backend.tensor, Backend.with_features = _begins(Backend.tensor), _begins(Backend.with_features)
Backend.features = _end
"""


# An editable installation has precedence over the folder of the clone on import.
WITHOUT_EDITABLE_FINDERS = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


def git(repository, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(repository), *identity, *words], check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def gate(clone, **settings):
    """Run the recipe against the commit before, for the cells that build their maps."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "docs/gate.sh", "HEAD~1"],
        cwd=clone,
        env=os.environ
        | {"PATH": path, "PYTHONPATH": str(clone.parent / "site")}
        | {"ENGINE": "spconv", **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_pull_request_that_slows_an_engine_by_a_tenth_fails_with_a_verdict(tmp_path):
    pytest.importorskip("spconv")
    pytest.importorskip("scikit_build_core")
    clone = tmp_path / "clone"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_EDITABLE_FINDERS)
    git(tmp_path, "clone", "--quiet", str(ROOT), str(clone))
    for kernels in (ROOT / "backends/sscn/cpu").glob("_kernels*.so"):
        (clone / "backends/sscn/cpu" / kernels.name).write_bytes(kernels.read_bytes())
    adapter = clone / "backends/spconv.py"
    adapter.write_text(adapter.read_text() + SLOWER_BY_A_TENTH)
    git(clone, "commit", "--quiet", "--all", "--message", "A slower engine")

    done = gate(clone)

    before = git(clone, "rev-parse", "--short=12", "HEAD~1")
    assert f"at {before}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
    assert "SLOWER" in done.stdout
    assert "spconv" in done.stdout
