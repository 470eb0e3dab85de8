"""History: stored runs and asv's database as series, what happened to them, and the page."""

import csv
import io
import json
import subprocess
import warnings

import pytest

from harness.__main__ import main
from harness.errors import BadInput
from harness.history.asv_database import PHASES, read_asv
from harness.history.command import history
from harness.history.findings import change_rows, count_environment_changes, find_all_changes
from harness.history.page import value_range, write_history_page
from harness.history.series import Commits, load
from harness.report.rows import Format
from harness.results.store import BadRecord
from harness.results.verdict import Verdict
from harness.spec.metrics import TIME


def git(folder, *words):
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=T", "-c", "user.email=t@t", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of twenty commits, made at the same second; returns their names in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
    git(tmp_path, "init", "-q")
    commits = []
    for number in range(20):
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", str(number))
        commits.append(git(tmp_path, "rev-parse", "HEAD"))
    return commits


@pytest.fixture
def measured(repository, make_record, write_records):
    """Twenty commits of two engines: sscn slows at the tenth, spconv is upgraded at the fifth."""

    def write(change=lambda number, record: None):
        for number, commit in enumerate(repository):
            records = []
            for engine, base in (("sscn", 0.05 * (1.3 if number >= 10 else 1)), ("spconv", 0.08)):
                record = make_record(
                    base,
                    seed=100 * number + len(engine),
                    backend=engine,
                    commit=commit,
                    run=f"run{number}",
                    versions={
                        "torch": "2.13.0",
                        "sscn": "1",
                        "spconv": "2.3.6" if number < 5 else "2.3.8",
                    },
                )
                change(number, record)
                records.append(record)
            # Files are named backwards: git's order counts, not theirs.
            write_records(records, f"results/runs/{99 - number}.jsonl")

    return write


def found_in(tmp_path):
    return find_all_changes(load(tmp_path / "results", Commits.of(tmp_path)))


def by_engine(found, engine, unit="s"):
    (one,) = [t for t in found if t.key.engine == engine and t.key.metric.unit == unit]
    return one


def test_a_step_is_named_with_its_commits_size_and_confidence(measured, tmp_path, repository):
    measured()
    first = found_in(tmp_path)[0]
    assert first.key.engine == "sscn"
    assert first.key.metric is TIME
    (change,) = first.changes
    assert change.verdict is Verdict.SLOWER
    assert change.ratio == pytest.approx(1.3, rel=0.02)
    assert change.confidence > 0.99
    assert change.commits == f"{repository[9][:8]}..{repository[10][:8]}"


def test_the_points_are_in_the_order_of_git(measured, tmp_path, repository):
    measured()
    points = by_engine(found_in(tmp_path), "sscn").points
    assert [p.commit for p in points] == repository


def test_a_new_version_of_an_engine_marks_its_series_alone(measured, tmp_path):
    measured()
    found = found_in(tmp_path)
    assert by_engine(found, "spconv").environment_changes == [(5, "spconv 2.3.6 to 2.3.8")]
    assert by_engine(found, "sscn").environment_changes == []


def test_two_versions_measured_in_turns_are_two_points_of_their_commit(
    measured, make_record, write_records, tmp_path, repository
):
    measured()
    for version, name in (("2.3.10", "ab.jsonl"), ("2.3.8", "ab.against.jsonl")):
        versions = {"torch": "2.13.0", "spconv": version}
        own = {"backend": "spconv", "commit": repository[-1], "run": "ab", "versions": versions}
        write_records([make_record(0.1, **own)], f"results/runs/{name}")
    series = by_engine(found_in(tmp_path), "spconv")
    assert len(series.points) == 21
    assert series.environment_changes[1:] == [(20, "spconv 2.3.8 to 2.3.10")]
    assert count_environment_changes([series])["spconv 2.3.8 to 2.3.10", repository[-1][:8]] == 1


def test_environments_of_equal_versions_are_not_pooled(
    measured, make_record, write_records, tmp_path, repository
):
    measured()
    versions = {"torch": "2.13.0", "sscn": "1"}
    own = {"backend": "sscn", "commit": repository[-1], "versions": versions}
    for seconds, name in ((0.065, "new/bin/python"), (0.13, "old/bin/python")):
        record = make_record(seconds, environment=name, **own)
        write_records([record], f"results/runs/{name[:3]}.jsonl")
    series = by_engine(found_in(tmp_path), "sscn")
    assert [round(p.value, 2) for p in series.points[-3:]] == [0.07, 0.07, 0.13]
    same = "with the same versions of sscn and torch"
    assert series.environment_changes == [
        (20, f"environment default to new/bin/python {same}"),
        (21, f"environment new/bin/python to old/bin/python {same}"),
    ]


def test_a_step_with_an_upgrade_names_it(measured, tmp_path):
    def faster(number, record):
        if record["cell"]["backend"] == "spconv" and number >= 5:
            record["host_seconds"] = [0.7 * s for s in record["host_seconds"]]

    measured(faster)
    (change,) = by_engine(found_in(tmp_path), "spconv").changes
    assert change.verdict is Verdict.FASTER
    assert change.note == "spconv 2.3.6 to 2.3.8"


def test_disturbed_times_are_named_and_energy_is_a_series(measured, tmp_path, repository):
    def change(number, record):
        record["conditions"] = {"stolen": 0.2 if number == 3 else 0.01}
        record["throttled"] = [0] if number == 7 else []
        record["energy_joules"] = 0.25

    measured(change)
    found = found_in(tmp_path)
    assert by_engine(found, "spconv").disturbed == [3, 7]
    assert by_engine(found, "spconv", "bytes").disturbed == []
    energy = by_engine(found, "spconv", "J")
    assert [point.value for point in energy.points] == [0.25] * 20
    page = write_history_page(tmp_path / "page", found).read_text()
    words = page.split("Open dots were disturbed")[1].split("</small>")[0]
    assert words.endswith(f": {repository[3][:8]}, {repository[7][:8]}")


def test_another_machine_is_another_series_and_no_step(measured, tmp_path):
    def move(number, record):
        if number >= 10:
            record["machine"] = {"processor": "Slow CPU", "threads": 2}
            record["host_seconds"] = [2 * s for s in record["host_seconds"]]

    measured(move)
    found = [t for t in found_in(tmp_path) if t.key.engine == "spconv" and t.key.metric is TIME]
    assert [len(t.points) for t in found] == [10, 10]
    assert not [t.changes for t in found if t.changes]


def test_a_cell_that_lost_its_time_comes_first(measured, tmp_path, repository):
    def crash(number, record):
        if record["cell"]["backend"] == "spconv" and number >= 18:
            record |= {"outcome": "crashed", "reason": "signal 11", "host_seconds": []}

    measured(crash)
    first = found_in(tmp_path)[0]
    assert first.key.engine == "spconv"
    (change,) = first.changes
    assert change.verdict is Verdict.MISSING
    assert change.commits == f"{repository[17][:8]}..{repository[18][:8]}"
    assert "crashed" in change.words


def test_memory_steps_are_called_heavier(measured, tmp_path):
    def grow(number, record):
        if number >= 12:
            record["memory"] = {"baseline_bytes": 3e8, "peak_rss_bytes": 6e8}

    measured(grow)
    events = by_engine(found_in(tmp_path), "spconv", "bytes").changes
    assert [e.verdict for e in events] == [Verdict.HEAVIER]


def test_an_error_that_varies_within_its_tolerance_is_no_change(measured, tmp_path):
    def wander(number, record):
        record["error"]["rel_rmse"] = 1e-7 if number < 10 else 5e-7

    measured(wander)
    assert by_engine(found_in(tmp_path), "spconv", "").changes == []


def test_changed_files_come_after_their_commit(measured, tmp_path, repository, make_record):
    measured()
    record = make_record(0.05, commit=repository[7], dirty=True, run="dirty")
    (tmp_path / "results/runs/00.jsonl").write_text(json.dumps(record) + "\n")
    commits = [p.commit for p in by_engine(found_in(tmp_path), "sscn").points]
    assert commits[7:9] == [repository[7], repository[7] + "+"]


def test_records_of_no_known_commit_are_placed_by_time(measured, tmp_path, make_record):
    measured()
    late = make_record(0.05, commit="f" * 40, utc="2026-03-01T00:00:00Z", run="late")
    (tmp_path / "results/runs/00.jsonl").write_text(json.dumps(late) + "\n")
    assert by_engine(found_in(tmp_path), "sscn").points[-1].commit == "f" * 40


@pytest.fixture
def asv_database(repository, tmp_path):
    """Results that asv itself wrote: a benchmark of time with a step, and one of memory."""
    pytest.importorskip("asv")
    from asv.results import Results

    names = ["engine", "size", "batch", "map"]
    params = [["'sscn'", "'dense'"], ["192"], ["1"], ["'cold'"]]
    about = {
        name: {"name": name, "param_names": names, "params": params, "unit": unit, "version": "1"}
        for name, unit in (
            ("inference.Inference.track_time", "seconds"),
            ("inference.Inference.track_peak_memory", "bytes"),
        )
    }
    folder = tmp_path / "results" / "asv"
    folder.mkdir(parents=True)
    (folder / "benchmarks.json").write_text(json.dumps(about | {"version": 2}))
    for number, commit in enumerate(repository):
        machine = {"machine": "bench", "cpu": "Example CPU", "gpu": "Example GPU"}
        results = Results(machine, {}, commit, 1767225600000 + number, "3.11", "env", {})
        slow = 1.4 if number >= 8 else 1.0
        wobble = 1 + 0.01 * (number % 3)
        for name, row in (
            ("inference.Inference.track_time", [0.05 * slow * wobble, float("nan")]),
            ("inference.Inference.track_peak_memory", [1e8, float("nan")]),
        ):
            results._results[name] = row
            results._stats[name] = [{"q_25": 0.9 * row[0], "q_75": 1.1 * row[0]}, None]
            results._benchmark_params[name] = params
            results._samples[name] = results._profiles[name] = None
            results._benchmark_version[name] = "1"
            results._started_at[name] = results._duration[name] = None
        results.save(str(folder))


def test_asvs_database_is_read_beside_our_records(asv_database, measured, tmp_path, repository):
    measured()
    found = found_in(tmp_path)
    asv = [t for t in found if "by asv" in t.key.where]
    assert {(t.key.engine, t.key.metric.unit) for t in asv} == {("sscn", "s"), ("sscn", "bytes")}
    time = by_engine(asv, "sscn")
    assert time.key.size == 192
    assert time.key.machine == "Example CPU, Example GPU"
    assert len(time.points) == 20
    assert time.points[0].low == pytest.approx(0.045)
    (change,) = time.changes
    assert change.commits == f"{repository[7][:8]}..{repository[8][:8]}"
    assert len(found) > len(asv)


def same_measurement(number, record):
    """Give a record the machine and the cell of asv's first benchmark."""
    record["machine"] = {"processor": "Example CPU", "threads": 2, "gpu": "Example GPU"}


def test_a_measurement_that_asv_and_a_record_hold_appears_once(asv_database, measured, tmp_path):
    measured(same_measurement)
    found = found_in(tmp_path)
    assert not [s.key for s in found if "by asv" in s.key.where]
    assert len(by_engine(found, "sscn").points) == 20


def test_commits_that_only_asv_holds_stay_in_its_series(asv_database, measured, tmp_path):
    measured(same_measurement)
    for path in sorted((tmp_path / "results/runs").iterdir())[:5]:
        path.unlink()
    asv = [s for s in found_in(tmp_path) if "by asv" in s.key.where]
    assert {len(s.points) for s in asv} == {5}


def test_the_phases_of_asvs_classes_are_those_of_the_suites():
    import suites.inference
    import suites.layers
    import suites.training

    classes = (
        suites.inference.Inference,
        suites.training.Training,
        suites.layers.Forward,
        suites.layers.InputGradient,
        suites.layers.WeightGradient,
        suites.layers.MapBuilding,
    )
    assert {c.__name__: c.phase for c in classes} == PHASES


def nested(content, *path):
    for step in path[:-1]:
        content = content[step]
    return content, path[-1]


TIME_TRACK = "inference.Inference.track_time"


WRONG = (None, 7, "text", [], {}, [{}], {"a": 1}, float("nan"), 1e300)


@pytest.mark.parametrize(
    "path",
    [
        ("date",),
        ("commit_hash",),
        ("params",),
        ("params", "cpu"),
        ("result_columns",),
        ("results",),
        ("results", TIME_TRACK),
        ("results", TIME_TRACK, 0),
        ("results", TIME_TRACK, 1),
    ],
)
def test_a_wrong_field_in_asvs_database_skips_only_its_file(asv_database, tmp_path, path):
    file = next((tmp_path / "results/asv/bench").glob("*-env.json"))
    written = file.read_text()
    for wrong in WRONG:
        content = json.loads(written)
        holder, last = nested(content, *path)
        holder[last] = wrong
        file.write_text(json.dumps(content))
        with warnings.catch_warnings(record=True) as reported:
            warnings.simplefilter("always")
            times = [s for s in found_in(tmp_path) if s.key.metric is TIME]
        assert sum(len(time.points) for time in times) in (19, 20)
        assert all(file.name in str(warning.message) for warning in reported)


def test_a_wrong_list_of_benchmarks_is_reported(asv_database, tmp_path):
    path = tmp_path / "results/asv/benchmarks.json"
    path.write_text(json.dumps({TIME_TRACK: {"param_names": 3, "unit": "seconds"}}))
    with pytest.warns(BadRecord, match="benchmarks.json has no valid param_names"):
        assert found_in(tmp_path) == []


def test_quartiles_lie_inside_the_frame(asv_database, tmp_path):
    (time,) = [s for s in found_in(tmp_path) if s.key.metric is TIME]
    low, high = value_range(time)
    assert low < min(p.low for p in time.points)
    assert high > max(p.high for p in time.points)


def test_the_command_prints_what_happened(measured, capsys):
    measured()
    with pytest.raises(SystemExit) as ended:
        main(["history"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "SLOWER" in out
    assert "changed: spconv 2.3.6 to 2.3.8 in" in out
    assert "6 series over 20 commits on 1 machine: 1 change." in out


def test_the_command_prints_changes_as_json(measured, capsys, tmp_path):
    measured()
    history(format=Format.json)
    rows = json.loads(capsys.readouterr().out)
    assert rows == change_rows(found_in(tmp_path))
    assert [r["verdict"] for r in rows] == ["SLOWER", *["OTHER ENVIRONMENT"] * 3]


@pytest.mark.parametrize(
    ("versions", "note"),
    [
        (
            {"torch": "2.13.0", "spconv": "2.3.8"},
            "environment default to old/bin/python with the same versions of spconv and torch",
        ),
        (
            {"torch": "2.13.0"},
            "environment default to old/bin/python with the same version of torch",
        ),
        ({}, "environment old/bin/python to default"),
        ({"torch": "2.14.0", "spconv": "2.3.8"}, "torch 2.13.0 to 2.14.0"),
        (
            {"torch": "2.14.0", "spconv": "2.3.9"},
            "spconv 2.3.8 to 2.3.9, torch 2.13.0 to 2.14.0",
        ),
    ],
)
def test_another_environment_says_whether_its_versions_differ(
    versions, note, measured, make_record, write_records, repository, capsys
):
    measured()
    own = {"backend": "spconv", "commit": repository[-1], "versions": versions}
    record = make_record(0.1, environment="old/bin/python", **own)
    write_records([record], "results/runs/old.jsonl")
    with pytest.raises(SystemExit) as ended:
        main(["history", "--format", "csv"])
    assert ended.value.code == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    times = [row for row in rows if row["metric"] == "time"]
    marked = [row for row in times if row["verdict"] == "OTHER ENVIRONMENT"]
    [last] = [row["note"] for row in marked if row["commits"] == repository[-1][:8]]
    assert last == note


def test_without_stored_runs_the_message_says_how_to_measure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="harness run"):
        history()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_filters_in_a_browser(
    measured, asv_database, tmp_path, width, open_page, violations, make_record, repository
):
    measured()
    alone = make_record(0.05, size=768, commit=repository[3], run="alone")
    (tmp_path / "results/runs/00.jsonl").write_text(json.dumps(alone) + "\n")
    path = write_history_page(tmp_path / "page", found_in(tmp_path))
    browser = open_page(path, width)
    assert violations(browser) == []

    def shown():
        return browser.execute_script(
            "return [...document.querySelectorAll('.card')].filter(c => !c.hidden)"
            ".map(c => [c.dataset.engine, c.dataset.metric, c.dataset.changes])"
        )

    def choose(name, value):
        browser.execute_script(
            "const s = document.querySelector(`#filter [name=${arguments[0]}]`);"
            "if (s.type === 'checkbox') s.checked = arguments[1]; else s.value = arguments[1];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    everything = shown()
    assert len(everything) == 8
    severities = browser.execute_script(
        "return [...document.querySelectorAll('.card')].map(c => +c.dataset.severity)"
    )
    assert severities == sorted(severities, reverse=True)
    choose("singles", True)
    assert len(shown()) == 11
    choose("singles", False)
    choose("engine", "spconv")
    assert {engine for engine, *_ in shown()} == {"spconv"}
    assert len(shown()) == 3
    choose("engine", "")
    choose("metric", "time")
    assert len(shown()) == 3
    choose("changed", True)
    assert [(engine, changes) for engine, _, changes in shown()] == [("sscn", "1")] * 2
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0


def test_asv_results_of_another_version_of_a_benchmark_are_left_out(asv_database, tmp_path):
    index = tmp_path / "results/asv/benchmarks.json"
    about = json.loads(index.read_text())
    about[TIME_TRACK]["version"] = "2"
    index.write_text(json.dumps(about))
    kinds = {value.kind for value in read_asv(index.parent)}
    assert kinds == {"memory"}
