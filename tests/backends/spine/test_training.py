"""SPINE trains from the command line, on events that this project wrote."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.spine]

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_the_documented_configuration_trains(tmp_path):
    pytest.importorskip("spine")
    converted = run(
        *("harness", "events", "convert", "sample", tmp_path / "spine.h5", "--size", "192"),
        *("--count", "4", "--to", "spine"),
    )
    assert converted.returncode == 0, converted.stderr
    page = (ROOT / "docs" / "spine.md").read_text()
    configuration = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    configuration["base"]["iterations"] = 2
    configuration["io"]["loader"]["minibatch_size"] = 2
    configuration["train"]["save_step"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    trained = run("backends.spine", "-c", "config.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (log,) = (tmp_path / "logs").glob("*.csv")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert len(rows) == 2
    assert all(float(row["loss"]) > 0 for row in rows)
    assert list((tmp_path / "weights").glob("*.ckpt"))


def test_a_network_with_a_missing_layer_is_refused_by_name(tmp_path):
    pytest.importorskip("spine")
    code = (
        "import backends.spine\n"
        "from spine.model.cnn.blocks import AtrousIIBlock\n"
        "AtrousIIBlock(4, 4, dimension=3)\n"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"SPINE_SPARSE_BACKEND": "sscn_bench", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "no convolution with kernel 3, stride 1, dilation 3" in done.stderr


def test_without_spine_one_sentence_says_how_to_install_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['spine'] = None\n")
    done = run("backends.spine", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2
    assert done.stderr == "SPINE is not installed: pip install spine==1.4.3\n"


def test_an_unknown_version_of_spine_is_named(tmp_path):
    pytest.importorskip("spine")
    code = (
        "import spine.version, backends.spine\n"
        "spine.version.__version__ = '9.0.0'\n"
        "import spine.model.sparse\n"
    )
    environment = os.environ | {"SPINE_SPARSE_BACKEND": "sscn_bench", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert "SPINE 9.0.0 is not known to this backend" in done.stderr
