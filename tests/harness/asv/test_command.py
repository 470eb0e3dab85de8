"""What ``python -m harness asv`` adds to asv's own arguments and machine file."""

import json

import pytest

asv_machine = pytest.importorskip("asv.machine")

from harness.asv.command import with_commit, write_machine_file  # noqa: E402


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
