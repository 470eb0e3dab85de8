import errno
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.results import store
from harness.results.summary import summarize


def test_a_record_comes_back_as_a_row(tmp_path, make_record):
    path = tmp_path / "run.jsonl"
    store.append(path, make_record(options={"b": "2", "a": "1"}, error={"max_abs": 3e-6}))
    row = store.read(path).iloc[0]
    assert row["cell.backend"] == "sscn"
    assert row["cell.options"] == '{"a":"1","b":"2"}'
    assert row["memory.peak_rss_bytes"] == 5e8
    assert row["error.max_abs"] == 3e-6
    assert isinstance(row["host_seconds"], list)


def test_rows_of_one_cell_share_its_name(tmp_path, make_record):
    from harness.spec.cell import Cell

    path = tmp_path / "run.jsonl"
    record = make_record()
    store.append(path, record)
    store.append(path, record)
    store.append(path, make_record(size=512))
    names = list(store.read(path)["cell.name"])
    assert names[0] == names[1] != names[2]
    assert names[0] == Cell.from_json(record["cell"]).name


def test_files_with_other_fields_are_read_together(tmp_path, make_record):
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    store.append(one, make_record(memory={"baseline_bytes": 1}))
    store.append(other, make_record(memory={"nvml_peak_bytes": 2}, outcome="timeout"))
    frame = store.read([one, other])
    assert frame["memory.baseline_bytes"].isna().tolist() == [False, True]
    assert frame["memory.nvml_peak_bytes"].isna().tolist() == [True, False]


def test_an_empty_file_is_an_empty_table(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    frame = store.read(path)
    assert len(frame) == 0
    assert set(store.CELL_COLUMNS) <= set(frame.columns)


def damaged(record):
    """Yield lines that are no valid records, with what should be said about each."""
    text = json.dumps(record)
    yield text[: len(text) // 2], "not a whole JSON record"
    yield "[1, 2]", "not a record"
    yield json.dumps(record | {"schema": 2}), "newer than 1; update"
    yield json.dumps({k: v for k, v in record.items() if k != "schema"}), "without a schema"
    yield json.dumps({k: v for k, v in record.items() if k != "cell"}), "cell: is missing"
    yield json.dumps(record | {"outcome": "splendid"}), "outcome: is 'splendid', not one of ok,"
    yield json.dumps(record | {"host_seconds": ["fast"]}), "host_seconds[0]: is 'fast', not a"
    yield json.dumps(record | {"host_seconds": []}), "host_seconds: is empty although"
    yield json.dumps(record | {"turn_samples": [1.5]}), "turn_samples[0]: is 1.5, not a whole"
    yield json.dumps(record | {"memory": 3}), "memory: is 3, not an object"
    yield json.dumps(record | {"cell": record["cell"] | {"map": "hot"}}), "cell: map must be one of"
    yield json.dumps(record | {"cell": record["cell"] | {"size": "big"}}), "cell: size must be"
    yield "\x00\x00garbage\xff", "not a whole JSON record"


def test_a_bad_line_is_named_and_the_rest_is_used(tmp_path, make_record):
    path = tmp_path / "run.jsonl"
    for number, (line, complaint) in enumerate(damaged(make_record()), 1):
        good = json.dumps(make_record())
        path.write_text(f"{good}\n{line}\n\n{good}\n")
        with pytest.warns(store.BadRecord) as caught:
            frame = store.read(path)
        assert len(frame) == 2, number
        (message,) = [str(warning.message) for warning in caught]
        assert message.startswith(f"{path}:2: ")
        assert complaint in message


def test_only_the_incomplete_line_of_a_killed_writer_is_skipped(tmp_path, make_record):
    path = tmp_path / "run.jsonl"
    store.append(path, make_record())
    with path.open("a") as file:
        file.write('{"schema":1,"run":"ki')
    store.append(path, make_record(size=512))
    with pytest.warns(store.BadRecord, match=":2: not a whole"):
        assert list(store.read(path)["cell.size"]) == [192, 512]


def write_many(path, name, count):
    for number in range(count):
        filler = "x" * 3000
        store.append(path, RECORD | {"run": name, "round": number, "reason": filler})


RECORD = {
    "schema": 1,
    "utc": "2026-01-01T00:00:00Z",
    "commit": "",
    "outcome": "timeout",
    "cell": {
        "suite": "s",
        "backend": "b",
        "options": {},
        "device": "cpu",
        "precision": "fp32",
        "dim": 3,
        "size": 192,
        "batch": 1,
        "phase": "forward",
        "map": "cold",
        "model": {"filters": 16, "depth": 5, "reps": 2, "classes": 5},
        "events": {"set": "sample", "sha256": "", "seed": 0},
    },
}


def test_two_runs_that_write_at_once_do_not_mix(tmp_path):
    path = tmp_path / "run.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, name, 60)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    frame = store.read(path)  # warnings are errors: every line is whole
    for name in ("one", "two"):
        assert list(frame[frame["run"] == name]["round"]) == list(range(60))


def test_a_writer_killed_at_any_moment_leaves_whole_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    code = f"from tests_store import *; write_many(Path({str(path)!r}), 'one', 10**6)"
    for attempt in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code.replace("tests_store", Path(__file__).stem)],
            env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"},
        )
        wanted = len(path.read_bytes()) if path.exists() else 0
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < wanted + 20000:
            assert time.monotonic() < deadline
            assert child.poll() is None, attempt
            time.sleep(0.01)
        child.kill()
        child.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", store.BadRecord)
        rounds = [record["round"] for record in store.records([path])]
    # A kill can cut the line that is being written, at the edge of a page of memory, and no other.
    assert len(caught) <= 3
    starts = [place for place, number in enumerate(rounds) if number == 0]
    assert len(starts) == 3
    for start, end in itertools.pairwise([*starts, len(rounds)]):
        assert rounds[start:end] == list(range(end - start))


def test_a_record_without_an_optional_field_leaves_the_other_rows_as_they_are(
    tmp_path, make_record
):
    path = tmp_path / "run.jsonl"
    short = make_record()
    del short["cell"]["events"]["seed"]
    store.append(path, short)
    store.append(path, make_record())
    assert [row.cell.events.seed for row in summarize(store.read(path))] == [0, 0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(make_record):
    with pytest.raises(BadInput, match=r"No space left on device.*--out"):
        store.append(Path("/dev/full"), make_record())


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_no_half_line(
    tmp_path, make_record, monkeypatch
):
    path = tmp_path / "run.jsonl"
    store.append(path, make_record())
    before = path.read_bytes()
    whole_write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole_write(handle, data[:50]))
    with pytest.raises(BadInput, match=os.strerror(errno.ENOSPC)):
        store.append(path, make_record())
    assert path.read_bytes() == before


def test_an_unwritable_place_is_one_sentence(tmp_path, make_record):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write results to"):
        store.append(tmp_path / "file" / "run.jsonl", make_record())


def test_not_a_number_is_never_written(tmp_path, make_record):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append(tmp_path / "run.jsonl", make_record(energy_joules=float("nan")))


def test_results_are_found_by_name(tmp_path, make_record):
    runs = tmp_path / "runs"
    store.append(tmp_path / "baseline.jsonl", make_record(commit="c" * 40))
    store.append(runs / "20260101T000000-demo.jsonl", make_record(commit="a" * 40))
    store.append(runs / "20260102T000000-demo.jsonl", make_record(commit="b" * 40))
    store.append(runs / "20260102T000000-demo.against.jsonl", make_record(commit="a" * 40))
    for number, path in enumerate(sorted(runs.iterdir())):
        os.utime(path, ns=(number, number))
    assert store.resolve("baseline", tmp_path) == [tmp_path / "baseline.jsonl"]
    assert store.resolve("latest", tmp_path) == [runs / "20260102T000000-demo.jsonl"]
    assert [path.name for path in store.resolve("aaaaaaa", tmp_path)] == [
        "20260101T000000-demo.jsonl",
        "20260102T000000-demo.against.jsonl",
    ]
    assert set(store.load("cccccc", tmp_path)["commit"]) == {"c" * 40}


def test_the_latest_run_is_the_one_whose_records_are_the_newest(tmp_path, make_record):
    from harness.run.rounds import latest_out

    older, newer = tmp_path / "runs/20260109T000000-demo.jsonl", tmp_path / "runs/b-demo.jsonl"
    store.append(newer, make_record(utc="2026-01-03T00:00:00Z"))
    store.append(older, make_record(utc="2026-01-02T00:00:00Z"))
    os.utime(newer, ns=(1, 1))
    older.with_name("20260110T000000-demo.jsonl").touch()  # a run that measured nothing
    assert store.resolve("latest", tmp_path) == [newer]
    assert latest_out("demo", tmp_path) == newer


@pytest.mark.parametrize("spec", ["latest", "baseline", "abcdef1", "nonsense"])
def test_a_missing_result_is_one_sentence(tmp_path, spec):
    with pytest.raises(BadInput):
        store.resolve(spec, tmp_path)


def test_unreadable_results_are_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="cannot read the results"):
        store.read(tmp_path / "missing.jsonl")


def test_escape_codes_of_a_stored_reason_do_not_reach_the_terminal(tmp_path, make_record):
    path = tmp_path / "run.jsonl"
    store.append(path, make_record(outcome="crashed", reason="\x1b[2Jgone \x1b]0;title\x07red"))
    (record,) = store.records([path])
    assert record["reason"] == "gone red"


def test_without_a_clone_the_baseline_says_where_it_is(tmp_path):
    with pytest.raises(BadInput, match="part of a clone of sscn-bench; go to its folder, or name"):
        store.resolve("baseline", tmp_path)
