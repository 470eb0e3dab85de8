"""Values of two machines are shown side by side and never joined."""

import csv
import io

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from harness.compare import command
from harness.compare.command import compare
from harness.errors import BadInput
from harness.results.store import read
from harness.results.summary import summarize

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(compare)

OTHER = {"processor": "Other CPU", "threads": 4}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_one_cell_on_two_machines_has_two_summaries(write_records, make_record):
    records = [make_record(0.01), make_record(0.1, machine=OTHER, run="r2")]
    found = summarize(read(write_records(records)))
    assert [m.seconds for m in found] == pytest.approx([0.01, 0.1], rel=0.05)
    assert [m.environment.label for m in found] == [
        "Example CPU, 2 threads",
        "Other CPU, 4 threads",
    ]


def test_two_sets_of_versions_are_not_joined(write_records, make_record):
    records = [make_record(0.01), make_record(0.1, versions={"torch": "2.14.0"}, run="r2")]
    assert len(summarize(read(write_records(records)))) == 2


def test_records_that_lack_a_fact_share_the_environment_of_the_others(write_records, make_record):
    versions = {"torch": "2.13.0", "sscn": "0.1.0"}
    records = [
        make_record(0.01, versions=versions),
        make_record(outcome="unavailable", backend="dense", machine={}, versions={}),
        make_record(outcome="crashed", backend="spconv"),
    ]
    found = summarize(read(write_records(records)))
    assert len({id(m.environment) for m in found}) == 1


def test_a_file_of_two_machines_is_shown_side_by_side(write_records, make_record):
    records = [
        make_record(seconds, backend=backend, machine=machine, run=name)
        for seconds, name, machine in (
            (0.01, "r1", {"processor": "Example CPU", "threads": 2}),
            (0.1, "r2", OTHER),
        )
        for backend in ("sscn", "dense")
    ]
    path = write_records(records)
    rows = list(csv.DictReader(io.StringIO(run(path, "--format", "csv").output)))
    assert [row["machine"] for row in rows] == ["Example CPU, 2 threads"] * 2 + [
        "Other CPU, 4 threads"
    ] * 2
    text = run(path).output
    assert "Example CPU, 2 threads: It is 1" in text
    assert "Other CPU, 4 threads: It is 1" in text
    assert "55 ms" not in text


def two_commits(make_record):
    """Two engines at two commits; the second commit has an engine that cannot run."""
    records = [
        make_record(seconds, backend=backend, commit=commit * 40)
        for seconds, commit in ((0.01, "a"), (0.1, "b"))
        for backend in ("sscn", "dense")
    ]
    absent = {"outcome": "unavailable", "machine": {}, "versions": {}}
    return [*records, make_record(backend="spconv", commit="b" * 40, **absent)]


def test_a_file_of_two_commits_is_shown_side_by_side(write_records, make_record, tmp_path):
    path = write_records(two_commits(make_record))
    rows = list(csv.DictReader(io.StringIO(run(path, "--format", "csv").output)))
    assert [row["commit"] for row in rows] == ["a" * 12] * 2 + ["b" * 12] * 3
    text = run(path, "--report", tmp_path / "page").output
    page = (tmp_path / "page" / "index.html").read_text()
    for shown in (text, page):
        assert "commit aaaaaaaaaaaa: It is 1" in shown
        assert "commit bbbbbbbbbbbb: It is 1" in shown
        assert "10 ms" in shown
        assert "100 ms" in shown
        assert "55 ms" not in shown


def test_changes_that_are_not_committed_are_another_code(write_records, make_record):
    records = [make_record(0.01), make_record(0.1, dirty=True)]
    assert len(summarize(read(write_records(records)))) == 2


def test_a_run_of_two_commits_is_not_compared_with_another(write_records, make_record):
    both = write_records(two_commits(make_record), "both.jsonl")
    one = write_records(two_commits(make_record)[:2], "one.jsonl")
    for names, which in (((one, both), "after"), ((both, one), "before")):
        refused = run(*names).exception
        assert isinstance(refused, BadInput)
        assert f"the run {which} has " in str(refused)
        assert "twice (commit aaaaaaaaaaaa and bbbbbbbbbbbb); name a commit" in str(refused)
    assert run(one, one).exit_code == 0


def two_environments(make_record):
    """A commit measured against an environment, and with another version of torch later."""
    records = []
    for run_name, seconds, torch, named in (
        ("r1", 0.01, "2.13.0", {}),
        ("r1", 0.02, "2.13.0", {"environment": "spconv@2.3.6"}),
        ("r2", 0.04, "2.14.0", {}),
    ):
        for backend in ("sscn", "dense"):
            common = {"backend": backend, "run": run_name, "versions": {"torch": torch}}
            records.append(make_record(seconds, **common, **named))
    return records


@pytest.mark.parametrize(
    ("choice", "seconds"),
    [("@spconv@2.3.6", 0.02), ("@torch@2.14.0", 0.04), ("@torch@2.13.0@", None), ("@x", None)],
)
def test_one_environment_of_a_commit_is_chosen(
    choice, seconds, write_records, make_record, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_records(two_environments(make_record), "results/runs/both.jsonl")
    chosen = run("a" * 8 + choice, "--format", "csv")
    if seconds is None:
        assert "choose one of these (default, spconv@2.3.6)" in str(chosen.exception)
        return
    assert chosen.exit_code == 0, chosen.exception
    rows = list(csv.DictReader(io.StringIO(chosen.output)))
    assert [float(row["median_s"]) for row in rows] == pytest.approx([seconds] * 2, rel=0.05)


def test_a_commit_of_two_environments_is_refused_with_their_names(
    write_records, make_record, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    records = two_environments(make_record)
    write_records(records[:4], "results/runs/both.jsonl")
    refused = run("a" * 8, "a" * 8).exception
    assert isinstance(refused, BadInput)
    assert "default and spconv@2.3.6); append @default or @spconv@2.3.6 to the" in str(refused)
    compared = run("a" * 8 + "@default", "a" * 8 + "@spconv@2.3.6")
    assert "2 SLOWER" in compared.output
    write_records(records[:2] + records[4:], "results/runs/both.jsonl")
    assert "append @torch@2.13.0 or @torch@2.14.0 to" in str(run("aaaaaa", "aaaaaa").exception)


def test_a_terminal_of_80_columns_cuts_no_name_and_no_number(
    write_records, make_record, monkeypatch
):
    def at_80(*arguments):
        out = io.StringIO()
        monkeypatch.setattr(command, "table_console", lambda: Console(width=80, file=out))
        assert run(*arguments).exit_code == 0
        lines = out.getvalue().splitlines()
        assert "…" not in out.getvalue()
        assert all(len(line) <= 80 for line in lines)
        return lines

    records = {
        machine: [
            make_record(seconds * cost, backend=backend, machine=own, run=machine)
            for backend, cost in (("sscn", 1.0), ("dense", 3675.0), ("minkowski", 5.0))
        ]
        for machine, seconds, own in (
            ("r1", 0.01, {"processor": "Example CPU", "threads": 2}),
            ("r2", 0.1, OTHER),
        )
    }
    lines = at_80(write_records([*records["r1"], *records["r2"]], "both.jsonl"))
    assert {"Example CPU, 2 threads", "Other CPU, 4 threads"} <= set(lines)
    assert sum(line.strip().startswith("minkowski") for line in lines) == 2
    lines = at_80(*(write_records(records[run], f"{run}.jsonl") for run in ("r1", "r2")))
    (said,) = [line for line in lines if "Not judged: measured on two machines" in line]
    assert "Example CPU" in said


def test_times_of_two_machines_are_never_judged_slower(write_records, make_record):
    before = write_records([make_record(0.01, round=i, seed=i) for i in range(12)], "a.jsonl")
    after = write_records(
        [make_record(0.1, machine=OTHER, round=i, seed=i) for i in range(12)], "b.jsonl"
    )
    result = run(before, after, "--format", "csv")
    assert "SLOWER" not in result.output
    assert "processor Example CPU and Other CPU" in result.output
    refused = run(before, after, "--fail-on", "slower").exception
    assert isinstance(refused, BadInput)
    assert "Example CPU and Other CPU" in str(refused)
    assert "--relative-to ENGINE" in str(refused)


def test_what_is_missing_on_one_of_two_machines_names_that_machine(write_records, make_record):
    records = [make_record(0.01), make_record(0.1, machine=OTHER, run="r2")]
    before, after = write_records(records, "a.jsonl"), write_records(records[:1], "b.jsonl")
    rows = csv.DictReader(io.StringIO(run(before, after, "--format", "csv").output))
    (missing,) = [row for row in rows if row["verdict"] == "MISSING"]
    assert missing["reason"].endswith("not measured after on Other CPU, 4 threads")


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (2.0, 1)])
def test_ratios_to_a_reference_engine_are_judged_across_machines(
    write_records, make_record, factor, code
):
    def side(seconds, name, **changes):
        return write_records(
            [
                make_record(
                    cost * seconds, backend=backend, round=i, seed=13 * i + len(backend), **changes
                )
                for i in range(12)
                for backend, cost in (
                    ("dense", 9.0),
                    ("sscn", factor if changes else 1.0),
                )
            ],
            name,
        )

    before, after = side(0.01, "a.jsonl"), side(0.1, "b.jsonl", machine=OTHER)
    result = run(before, after, "--relative-to", "dense", "--fail-on", "slower")
    assert result.exit_code == code, result.output
    rows = run(before, after, "--relative-to", "dense", "--format", "csv").output
    (row,) = [r for r in csv.DictReader(io.StringIO(rows)) if r["metric"] == "time over dense"]
    assert float(row["before"]) == pytest.approx(1 / 9, rel=0.02)
    if code:
        assert "0.11 × " in result.output or "0.111 ×" in result.output
    nobody = run(before, after, "--relative-to", "nobody").exception
    assert "no other engine was measured beside 'nobody'" in str(nobody)


def test_the_page_of_a_run_with_fewer_engines_after_is_written(
    tmp_path, write_records, run_records
):
    records = run_records()
    before = write_records(records, "a.jsonl")
    after = write_records([r for r in records if r["cell"]["backend"] != "spconv"], "b.jsonl")
    result = run(before, after, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "spconv" in (tmp_path / "report" / "index.html").read_text()


def test_throttling_outliers_and_skipped_events_are_reported(tmp_path, write_records, make_record):
    doubtful = {"throttled": [0, 1], "outliers": [3, 4], "skipped_empty": 5}
    before = [make_record(0.05, round=i, seed=i) for i in range(12)]
    after = [make_record(0.1, round=i, seed=99 + i, **doubtful) for i in range(12)]
    a, b = write_records(before, "a.jsonl"), write_records(after, "b.jsonl")
    (row,) = csv.DictReader(io.StringIO(run(b, "--format", "csv").output))
    assert (row["throttled"], row["outliers"], row["skipped_events"]) == ("24", "24", "5")
    reason = next(csv.DictReader(io.StringIO(run(a, b, "--format", "csv").output)))["reason"]
    assert "after, 24 of 108 samples were taken with the GPU's clock held down" in reason
    assert "24 of 108 samples are outliers" in reason
    run(b, "--report", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "24 of 108 samples are outliers" in page
    assert "5 events without a site were passed over" in page
