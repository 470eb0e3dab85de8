"""``python -m harness asv``: its additions to the arguments and the machine file of asv."""

import json
import sys

import pytest

asv_machine = pytest.importorskip("asv.machine")

from harness.asv import track  # noqa: E402
from harness.asv.command import (  # noqa: E402
    NOTES,
    processor_slug,
    run_with_progress,
    with_commit,
    with_machine,
    write_machine_file,
)
from harness.errors import BadInput  # noqa: E402


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["run", "-E", "existing:same"],
            ["run", "--set-commit-hash", "abc", "-E", "existing:same"],
        ),
        (
            ["run", "--environment=existing"],
            ["run", "--set-commit-hash", "abc", "--environment=existing"],
        ),
        (["run", "HEAD~3..HEAD"], ["run", "HEAD~3..HEAD"]),
        (["publish"], ["publish"]),
        (
            ["run", "-E", "existing", "--set-commit-hash=f"],
            ["run", "-E", "existing", "--set-commit-hash=f"],
        ),
        ([], []),
    ],
)
def test_only_runs_in_an_existing_environment_are_labelled(arguments, expected):
    assert with_commit(arguments, "abc") == expected


def test_without_a_commit_nothing_is_added():
    assert with_commit(["run", "-E", "existing"], "") == ["run", "-E", "existing"]


def test_machine_file_names_the_gpu_and_keeps_what_a_user_wrote(tmp_path):
    path = tmp_path / "machine.json"
    first = write_machine_file("", path)
    assert "gpu" not in first

    stored = json.loads(path.read_text())
    stored[first["machine"]]["room"] = "cellar"
    path.write_text(json.dumps(stored))
    write_machine_file("NVIDIA H100 PCIe", path)

    entry = json.loads(path.read_text())[first["machine"]]
    assert entry["gpu"] == "NVIDIA H100 PCIe"
    assert entry["room"] == "cellar"
    assert entry["cpu"] == first["cpu"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "HEAD"], ["run", "--machine", "m", "HEAD"]),
        (["continuous", "a", "b"], ["continuous", "--machine", "m", "a", "b"]),
        (["run", "--machine=other"], ["run", "--machine=other"]),
        (["run", "-m", "other"], ["run", "-m", "other"]),
        (["publish"], ["publish"]),
        ([], []),
    ],
)
def test_runs_are_stored_under_the_name_of_the_machine(arguments, expected):
    assert with_machine(arguments, "m") == expected


@pytest.mark.parametrize(
    ("processor", "slug"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "intel-xeon-2.50ghz-2"),
        ("AMD EPYC 7B13", "amd-epyc-7b13-2"),
        ("../..", "..-..-2"),
        ("", "unknown-2"),
    ],
)
def test_a_machine_is_named_by_its_processor(processor, slug):
    assert processor_slug(processor, "2") == slug


def test_the_machine_file_does_not_depend_on_the_host_name(tmp_path, monkeypatch):
    names = []
    for host in ("vm", "runner-17"):
        monkeypatch.setattr(asv_machine.Machine, "get_unique_machine_name", lambda host=host: host)
        names.append(write_machine_file("", tmp_path / "machine.json")["machine"])
    assert names[0] == names[1]
    assert names[0] not in ("vm", "runner-17")


def test_progress_is_printed_while_asv_runs(capfd):
    code = (
        "import os; f = open(os.environ['SSCN_BENCH_PROGRESS'], 'a'); "
        "f.write('another run is measuring on cpu: waiting for it\\n'); "
        "f.close(); raise SystemExit(3)"
    )
    assert run_with_progress([sys.executable, "-c", code]) == 3
    assert "waiting for it" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "soon"])
def test_a_budget_that_is_no_number_of_seconds_is_refused(text):
    with pytest.raises(BadInput, match="SSCN_BENCH_BUDGET"):
        track.budget_of({"SSCN_BENCH_BUDGET": text})


def test_help_names_the_variables():
    for name in (track.ONLY, track.BUDGET, track.RECORDS):
        assert name in NOTES
