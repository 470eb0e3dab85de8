"""The script for GPU machines keeps what it has when a step fails or its time is up."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device

SCRIPT = Path(device.__file__)


@pytest.fixture
def steps(monkeypatch):
    """Replace the programs by harmless ones."""

    def replace(*programs):
        listed = [
            device.Command(step, (sys.executable, "-c", code), share)
            for step, code, share in programs
        ]
        monkeypatch.setattr(device, "commands", lambda options, python: listed)

    return replace


def test_without_packages_one_sentence_names_what_is_missing(tmp_path):
    isolated = [sys.executable, "-I", "-S", str(SCRIPT), str(tmp_path), "--steps", "inference"]
    done = subprocess.run(isolated, capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stderr
    (first, *_) = done.stdout.splitlines()
    assert first.startswith("Missing here: torch, numpy")
    assert first.endswith("otherwise these steps are left out: inference.")


def test_wheels_count_as_installed(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["no-such.package>=1; python_version > \'3\'", "pytest>=8"]\n'
    )
    assert device.missing_packages(root=tmp_path) == ["no-such.package"]
    facts = tmp_path / "wheels" / "No_Such_Package-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: No-Such.Package\nVersion: 1\n")
    assert device.missing_packages([tmp_path / "wheels"], root=tmp_path) == []


def test_a_program_that_takes_too_long_is_stopped_and_its_output_kept(tmp_path):
    log = tmp_path / "log.txt"
    code = "import time; print('before', flush=True); time.sleep(600)"
    outcome, _ = device.execute([sys.executable, "-c", code], {}, log, 2.0)
    assert outcome == "time is up"
    assert "before" in log.read_text()


def test_a_missing_program_is_named_so(tmp_path):
    assert device.execute(["no-such-program"], {}, tmp_path / "log", 5.0) == ("missing", 0.0)


def test_other_steps_run_after_one_failed(steps, tmp_path, capsys):
    steps(("build", "raise SystemExit(3)", 1.0), ("build", "print('never')", 1.0),
          ("tests", "print('tested')", 1.0))  # fmt: skip
    assert device.main([str(tmp_path / "out")]) == 1
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [["build", "exit"], ["tests", "ok"]]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "\ntested\n" in log
    assert "\nnever\n" not in log
    assert "tests      ok" in capsys.readouterr().out


def test_nothing_starts_when_no_time_is_left(steps, tmp_path):
    steps(("tests", "print('tested')", 1.0))
    assert device.main([str(tmp_path), "--seconds", "1"]) == 1
    assert "no time left" in (tmp_path / "summary.txt").read_text()
    assert (tmp_path / "log.txt").read_text() == ""


def test_the_suites_measure_what_was_asked_for():
    options = device.parse(
        ["out", "--steps", "training", "--backend", "sscn", "--backend", "spconv", "--batch", "64"]
    )
    (command,) = device.commands(options, "python3")
    line = " ".join(command.words)
    assert "run training --device cuda" in line
    assert "--backend sscn --backend spconv --size 192 --budget 2.0 --batch 64" in line


def test_an_unknown_step_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        device.parse(["out", "--steps", "dance"])
    assert stopped.value.code == 2
    assert "there is no step 'dance'" in capsys.readouterr().err
