"""The whole study at its smallest scale, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.results import store
from harness.study.scales import SMOKE

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_smoke_study_runs_from_events_to_page(tmp_path):
    pytest.importorskip("calzone")
    pytest.importorskip("xraydb")
    out = tmp_path / "study"
    command = [sys.executable, "-m", "harness", "study", "--out", str(out), "--scale", "smoke"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stderr
    assert "about two minutes" in first.stdout.splitlines()[0]

    records = list(store.records([out / "records.jsonl"]))
    assert {r["outcome"] for r in records} == {"ok"}
    trained = [r["training"] for r in records if r["cell"]["suite"] == "training"]
    assert {t["name"]: t["steps"] for t in trained} == {t.name: t.steps for t in SMOKE.trainings}

    # Dense and sparse networks of the same function have the same accuracy after training.
    accuracy = pd.read_csv(out / "figures" / "accuracy.csv").set_index("training")
    twins = accuracy.loc[["sparse 16 px", "dense 16 px"], "nonzero accuracy"]
    assert abs(twins.iloc[0] - twins.iloc[1]) < 0.01

    page = (out / "index.html").read_text()
    for heading in ("The dilation problem", "Table II", "Dense over sparse", "Michel electrons"):
        assert heading in page
    for picture in (out / "figures").glob("*.png"):
        assert picture.with_suffix(".csv").exists()
        assert f"figures/{picture.name}" in page
    assert len(list((out / "figures").glob("*.png"))) > 15
    assert str(tmp_path) not in page

    # Everything is there: the same command only writes the page again.
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there already") == len(SMOKE.trainings)
    assert len(list(store.records([out / "records.jsonl"]))) == len(records)
