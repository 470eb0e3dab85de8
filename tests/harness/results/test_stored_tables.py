"""The tables of all stored results are those printed at commit ed412c5, to the digit.

``expected`` holds the output of ``compare --format csv`` and ``history --format csv`` then. Columns
that were added since are not compared. The tables of the baseline and of the packaged network are
those of the day when they were measured; so is that of two runs, both of the history. The main
training of ``study-laptop`` has a row per commit: it was pooled over three then.
"""

import csv
import io
import warnings
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.history.findings import change_rows, find_all_changes
from harness.history.series import Commits, load
from harness.report.rows import Format, write_rows

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = Path(__file__).with_name("expected")
FILES = sorted((ROOT / "results").rglob("*.jsonl"))
HISTORY = (  # the commits of the stored history, ancestors first, also where git does not have them
    "ea2ed0fb03455ac1365fe1ce2bcb3329c6e84fa2",
    "37d43b886f201f68f1f5213d1419673320a9ae5a",
    "c6fc8d8c8fb8d8ee52186e10dfad3424ed5edf2d",
    "5e46dab1b9f09f548a4ba4faf3a31a462bd5556c",
    "71807a061e2680b071f66e395f42254a78998075",
    "5267ceffcdbc641c129ff3919c045dbfa5d59780",
    "94133ee0f359141e4692e4e086565df752f221c5",
    "a6f75eeecfc1fd5ceb13a0b8bc5868f332853a66",
    "63021a81488b9129ae6df63363af53cba62fb5a8",
    "df45a6a2e6adf7a736ce00448a88536519681328",
)


def expected_name(path):
    return "_".join(path.relative_to(ROOT).parts) + ".csv"


@pytest.fixture
def printed(capsys):
    """Run a command of the harness, and return the rows of its table."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            main([*map(str, arguments), "--format", "csv"])
        assert not ended.value.code
        return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))

    return run


def check(found, name):
    expected = list(csv.DictReader((EXPECTED / name).read_text().splitlines()))
    assert len(found) == len(expected) > 0
    for row, was in zip(found, expected, strict=True):
        # Reasons have become longer: they name the machine, and remark on outliers.
        assert row["reason"].startswith(was.pop("reason"))
        assert {column: row[column] for column in was} == was


@pytest.mark.parametrize("path", FILES, ids=expected_name)
def test_a_stored_run_gives_the_same_table(printed, path):
    check(printed("compare", path), expected_name(path))


def test_two_stored_runs_give_the_same_changes(printed):
    before = ROOT / "results/history/37d43b886f20-inference-forward.jsonl"
    after = ROOT / "results/history/5267ceffcdbc-inference-forward.jsonl"
    check(printed("compare", before, after), "ab.csv")


def test_the_stored_history_has_the_same_changes_each_listed_once(tmp_path):
    for folder in ("history", "asv"):  # without runs of this machine
        (tmp_path / folder).symlink_to(ROOT / "results" / folder)
    places = {commit: number for number, commit in enumerate(HISTORY)}
    rows = change_rows(find_all_changes(load(tmp_path, Commits(places, []))))
    printed = list(csv.DictReader(io.StringIO(write_rows(rows, Format.csv))))
    then = list(csv.DictReader((EXPECTED / "history.csv").read_text().splitlines()))
    change = ("verdict", "metric", "engine", "commits", "ratio", "confidence")
    assert [row for row in then if "by asv" not in row["where"]] == printed
    # asv's database holds the same measurements as the records; then, they were listed again.
    assert {tuple(row[name] for name in change) for row in then} == {
        tuple(row[name] for name in change) for row in printed
    }
