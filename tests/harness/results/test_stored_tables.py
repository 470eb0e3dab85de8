"""The tables of all stored results are those printed at commit ed412c5, to the digit.

``expected`` holds what ``compare --format csv`` printed then. Columns that were added since are not
compared. The main training of ``study-laptop`` has a row per commit: it was pooled over three then.
"""

import csv
import io
import warnings
from pathlib import Path

import pytest

from harness.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = Path(__file__).with_name("expected")
FILES = sorted((ROOT / "results").rglob("*.jsonl"))


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
        assert {column: row[column] for column in was} == was


@pytest.mark.parametrize("path", FILES, ids=expected_name)
def test_a_stored_run_gives_the_same_table(printed, path):
    check(printed("compare", path), expected_name(path))


def test_two_stored_runs_give_the_same_changes(printed):
    before = ROOT / "results/history/37d43b886f20-inference-forward.jsonl"
    check(printed("compare", before, ROOT / "results/baseline.jsonl"), "ab.csv")
