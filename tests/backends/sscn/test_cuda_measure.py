"""The script for GPU machines keeps what it has when a step fails or its time is up."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "device" / "measure.py"


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure_device", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def steps(measure, monkeypatch):
    """Replace the programs by harmless ones."""

    def replace(*programs):
        listed = [
            measure.Command(step, (sys.executable, "-c", code), share)
            for step, code, share in programs
        ]
        monkeypatch.setattr(measure, "commands", lambda options, python: listed)

    return replace


def test_a_program_that_takes_too_long_is_stopped_and_its_output_kept(measure, tmp_path):
    log = tmp_path / "log.txt"
    code = "import time; print('before', flush=True); time.sleep(600)"
    outcome, _ = measure.execute([sys.executable, "-c", code], {}, log, 2.0)
    assert outcome == "time is up"
    assert "before" in log.read_text()


def test_a_missing_program_is_named_so(measure, tmp_path):
    assert measure.execute(["no-such-program"], {}, tmp_path / "log", 5.0) == ("missing", 0.0)


def test_other_steps_run_after_one_failed(measure, steps, tmp_path, capsys):
    steps(("build", "raise SystemExit(3)", 1.0), ("build", "print('never')", 1.0),
          ("tests", "print('tested')", 1.0))  # fmt: skip
    assert measure.main([str(tmp_path / "out")]) == 1
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [["build", "exit"], ["tests", "ok"]]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "\ntested\n" in log
    assert "\nnever\n" not in log
    assert "tests      ok" in capsys.readouterr().out


def test_nothing_starts_when_no_time_is_left(measure, steps, tmp_path):
    steps(("tests", "print('tested')", 1.0))
    assert measure.main([str(tmp_path), "--seconds", "1"]) == 1
    assert "no time left" in (tmp_path / "summary.txt").read_text()
    assert (tmp_path / "log.txt").read_text() == ""


def test_the_suites_measure_what_was_asked_for(measure):
    options = measure.parse(
        ["out", "--steps", "training", "--backend", "sscn", "--backend", "spconv", "--batch", "64"]
    )
    (command,) = measure.commands(options, "python3")
    line = " ".join(command.words)
    assert "run training --device cuda" in line
    assert "--backend sscn --backend spconv --size 192 --batch 64" in line


def test_an_unknown_step_is_refused(measure, capsys):
    with pytest.raises(SystemExit) as stopped:
        measure.parse(["out", "--steps", "dance"])
    assert stopped.value.code == 2
    assert "there is no step 'dance'" in capsys.readouterr().err
