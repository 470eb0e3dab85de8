"""Sentences about packages that are not installed."""

import subprocess
import sys

from harness import errors


def test_in_a_clone_the_advice_keeps_the_constraints():
    message = str(errors.missing_packages("asv", "asv"))
    root = errors.__file__.rpartition("/harness/")[0]
    assert f"{sys.executable} -m pip install -c {root}/constraints.txt" in message
    assert f"--editable '{root}[asv]'" in message
    command = message.partition("add it with: ")[2] + " --dry-run --no-deps --no-build-isolation"
    assert "\n" not in message
    assert subprocess.run(["bash", "-nc", command]).returncode == 0  # it can be pasted


def test_beside_a_wheel_the_advice_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "harness" / "errors.py"))
    message = str(errors.missing_packages("dask.distributed", "dask"))
    assert message.endswith("-m pip install 'sscn-bench[dask]'")
