"""Every cell of a study is measured once, and a cell that cannot run here has a record."""

from io import StringIO

from rich.console import Console

from backends.capabilities import Capabilities
from backends.registry import Availability
from harness.results import store
from harness.run import rounds
from harness.run.job import Job
from harness.spec.cell import Cell
from harness.study.costs import measure_costs

FOUND = {
    "sscn": Availability("sscn", Capabilities("1", ("cpu",), {"cpu": ("fp32",)})),
    "dense": Availability("dense", None, "it is a stand-in"),
}


def jobs(*sizes):
    return [
        Job(Cell("study-dense", engine, size, 1, "forward", "cold"))
        for size in sizes
        for engine in FOUND
    ]


def test_missing_cells_are_measured_in_groups_and_present_ones_are_not_repeated(
    tmp_path, monkeypatch
):
    measured = []

    def measure(group, seed, listener):
        measured.append([task.job.cell.title for task in group])
        for task in group:
            yield task, {"outcome": "timeout", "reason": "a stand-in"}

    monkeypatch.setattr(rounds.turns, "measure_in_turns", measure)
    out, console = tmp_path / "records.jsonl", Console(file=StringIO(), width=200)
    measure_costs(jobs(192), out, FOUND, console, timeout=1.0)
    measure_costs(jobs(192, 512), out, FOUND, console, timeout=1.0)
    assert [len(group) for group in measured] == [1, 1]
    outcomes = [
        (record["cell"]["backend"], record["cell"]["size"], record["outcome"])
        for record in store.records([out])
    ]
    assert sorted(outcomes) == [
        ("dense", 192, "unavailable"),
        ("dense", 512, "unavailable"),
        ("sscn", 192, "timeout"),
        ("sscn", 512, "timeout"),
    ]
    assert "dense is left out: it is a stand-in" in console.file.getvalue()
