"""SPINE's UResNet is measured like an engine: the suite's records hold its agreement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import probed

pytest.importorskip("spine")
pytestmark = [pytest.mark.spine]

ROOT = Path(__file__).resolve().parents[3]


def test_the_suite_measures_spine_on_its_own_and_on_another_engine(tmp_path):
    engines = ["spine:engine=sscn", "sscn"]
    if probed()["minkowski"].capabilities is not None:
        engines.append("spine:engine=shipped")
    out = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "harness", "run", "spine", "--size", "192", "--batch", "1"]
    command += ["--network", "spine", "--budget", "0.05", "--repeats", "1", "--out", str(out)]
    for engine in engines:
        command += ["--backend", engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    records = [record for record in records if "cell" in record]
    assert {record["cell"]["phase"] for record in records} == {"forward", "step"}
    assert len(records) == 2 * len(engines)
    for record in records:
        assert record["outcome"] == "ok", record["reason"]
        assert record["error"]["rel_rmse"] < 1e-4
