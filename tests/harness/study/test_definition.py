"""Definitions and plans of a study, and bad input on the command line."""

import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from backends.capabilities import Capabilities
from backends.registry import Availability
from harness.errors import BadInput
from harness.events import simulate
from harness.study import run
from harness.study.cells import Engines, cost_jobs
from harness.study.definition import Study, read_study, write_definition
from harness.study.scales import AS_PUBLISHED, DENSE, SCALES, SMOKE

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_training_of_a_scale_has_a_plan_and_is_described(scale, tmp_path):
    study = Study(tmp_path, scale.name)
    sizes = {size for size, _ in scale.mixtures}
    text = scale.describe()
    assert scale.expected in text
    for training in scale.trainings:
        plan = study.plan(training)
        assert plan.model.classes == training.classes
        assert training.size in sizes
        (line,) = (line for line in text.splitlines() if f"trains {training.name}:" in line)
        assert f"{training.steps:,} steps" in line
        assert (f"{training.seconds / 60:g} minutes" in line) == bool(training.seconds)
        assert line.lower().endswith(f"with {plan.optimiser}")
    names = [training.name for training in scale.trainings]
    assert len(set(names)) == len(names)


def test_dense_and_sparse_train_on_the_same_events_with_the_same_seed(tmp_path):
    study = Study(tmp_path, "laptop")
    crops = [study.plan(t) for t in SCALES["laptop"].trainings if t.crop]
    assert [plan.backend for plan in crops] == ["sscn", DENSE, AS_PUBLISHED]
    alike = {
        (p.events, p.batch, p.seed, p.steps, p.optimiser, p.learning_rate, p.model) for p in crops
    }
    assert len(alike) == 1


def test_a_folder_is_for_one_study(tmp_path):
    study = Study(tmp_path / "new", "smoke", also=("spconv",))
    write_definition(study)
    write_definition(study)
    assert read_study(study.out) == study
    longer = replace(study, minutes=60.0)
    write_definition(longer)
    assert read_study(study.out).plan(longer.resolved_scale.trainings[0]).seconds == 3600
    with pytest.raises(BadInput, match="other options"):
        write_definition(replace(study, scale="laptop"))
    with pytest.raises(BadInput, match="holds no study"):
        read_study(tmp_path)


def test_the_cells_of_a_scale_are_distinct_and_share_their_questions(tmp_path):
    engines = Engines(("sscn", "spconv"), (DENSE,))
    jobs = cost_jobs(SMOKE.costs, engines, "cpu", "fp32", SMOKE.model, tmp_path)
    names = [job.cell.name for job in jobs]
    assert len(set(names)) == len(names)
    crops = [job.cell for job in jobs if job.cell.suite == "study-dense" and job.cell.size == 16]
    assert {cell.backend for cell in crops} == {"sscn", "spconv", DENSE}
    assert len({cell.question for cell in crops}) == 1
    assert all(job.cell.events.sha256 for job in jobs)


def test_a_scale_for_a_gpu_is_refused_where_there_is_none(tmp_path, monkeypatch):
    here = {
        name: Availability(name, Capabilities("1", ("cpu",), {"cpu": ("fp32",)}))
        for name in ("sscn", DENSE, AS_PUBLISHED)
    }
    monkeypatch.setattr(run, "probe_all", lambda names: [here[name] for name in names])
    with pytest.raises(BadInput, match="the scale gpu needs cuda, where sscn does not run here"):
        run.run_study(Study(tmp_path / "x", "gpu"), Console(file=StringIO()))
    assert not (tmp_path / "x").exists()


def test_missing_packages_of_the_simulation_are_named_before_the_description(tmp_path, monkeypatch):
    here = [
        Availability(name, Capabilities("1", ("cpu",), {"cpu": ("fp32",)}))
        for name in ("sscn", DENSE, AS_PUBLISHED)
    ]
    monkeypatch.setattr(run, "probe_all", lambda names: here)
    monkeypatch.setattr(simulate, "find_spec", lambda name: None)
    text = StringIO()
    with pytest.raises(BadInput, match=r"needs calzone and xraydb.*simulate"):
        run.run_study(Study(tmp_path / "x", "smoke"), Console(file=text))
    assert text.getvalue() == ""
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "text", ["", '{"scale": "smo', "[]", '{"scale": 1}', '{"scale": "smoke", "x": 1}']
)
def test_a_damaged_definition_is_one_sentence(text, tmp_path):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(BadInput, match="is damaged; remove it and repeat"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scale", "smoke"], "name the folder of the study: --out DIR"),
        (["--out", "x", "--scale", "huge"], "there is no scale 'huge'"),
        (["--out", "x", "--scale", "smoke", "--backend", "none"], "no engine called 'none'"),
        (["page", "nowhere"], "holds no study"),
        (["train", "nowhere"], "holds no plan.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    child = subprocess.run(
        [sys.executable, "-m", "harness", "study", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 2
    assert sentence in child.stderr
    assert "Traceback" not in child.stderr
    assert not (tmp_path / "x").exists()
