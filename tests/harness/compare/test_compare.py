"""``compare``: its tables, sentences and exit codes."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from harness.compare.command import compare
from harness.compare.comparison import changes, common_drift, finding, headline, standings, tally
from harness.errors import BadInput
from harness.report.provenance import facts
from harness.report.rows import speed
from harness.results.store import read
from harness.results.summary import summarize
from harness.results.verdict import Verdict

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(compare)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def pooled(write_records, records, name="x.jsonl"):
    return summarize(read(write_records(records, name)))


def test_speed_ups_are_over_dense_and_over_the_best_other(write_records, run_records):
    ranked = standings(pooled(write_records, run_records()))
    small = {s.measured.engine: s for s in ranked if s.measured.cell.size == 192}
    assert small["sscn"].over_dense == pytest.approx(9, rel=0.03)
    assert small["sscn"].over_best == pytest.approx(1.6, rel=0.03)
    assert small["spconv"].over_best == pytest.approx(1 / 1.6, rel=0.03)
    assert small["dense"].over_dense == pytest.approx(1)


def test_engines_without_a_time_stand_last_and_have_no_speed_up(write_records, run_records):
    ranked = standings(pooled(write_records, run_records()))
    large = [s for s in ranked if s.measured.cell.size == 512]
    assert [s.measured.engine for s in large if s.measured.cell.batch == 1][-1] == "dense"
    assert all(s.over_dense is None for s in large)


def test_variants_of_one_engine_are_not_compared_with_each_other(write_records, make_record):
    records = [
        make_record(1.0, backend="spconv", options={"algo": "native"}),
        make_record(2.0, backend="spconv"),
        make_record(4.0, backend="dense"),
    ]
    best = standings(pooled(write_records, records))[0]
    assert best.measured.engine == "spconv algo=native"
    assert best.over_best == pytest.approx(4, rel=0.02)


def test_rounds_are_pooled_and_a_repeated_round_replaces_the_first(write_records, make_record):
    records = [make_record(s, round=r) for s, r in ((1.0, 0), (1.0, 1), (3.0, 2), (1.0, 2))]
    (cell,) = pooled(write_records, records)
    assert len(cell.side.rounds) == 3
    assert cell.seconds == pytest.approx(1, rel=0.05)
    assert cell.memory == pytest.approx(2e8)


def test_one_crashed_round_makes_the_cell_crashed(write_records, make_record):
    records = [make_record(round=0), make_record(round=1, outcome="crashed", reason="signal 11")]
    (cell,) = pooled(write_records, records)
    assert cell.side.outcome == "crashed"
    assert cell.side.reason == "signal 11 (1 of 2 rounds)"


def test_records_without_round_numbers_are_rounds_in_order(write_records, make_record):
    (cell,) = pooled(write_records, [make_record(), make_record()])
    assert len(cell.side.rounds) == 2


def test_first_calls_are_rounds_because_each_had_a_process(write_records, make_record):
    (cell,) = pooled(write_records, [make_record(map="first", n=5)])
    assert len(cell.side.rounds) == 5


def test_the_finding_names_the_fastest_its_lead_and_the_smallest(write_records, run_records):
    said = finding(pooled(write_records, run_records(rounds=10)))
    text = " ".join(said.sentences)
    assert said.claim == "sscn is the fastest engine here"
    assert re.search(r"wins all 6 comparisons, by 1\.(59|6)\d*x to 1\.6\d*x over", text)
    assert "At 768 px, batch 4" in text
    assert re.search(r"spconv takes 1\.(59|6)", text)
    assert "not sure" not in text
    assert "The smallest there is sscn" in text
    assert "dense gave no time there: out-of-memory; at 192 px" in text
    assert float(re.search(r"it takes ([\d.]+)x as long as sscn", text)[1]) == pytest.approx(
        9, 0.02
    )
    assert [m.engine for m in said.quoted] == ["sscn", "spconv", "dense"]


def test_the_finding_names_no_winner_of_a_close_race(write_records, make_record):
    records = [make_record(1.0), make_record(1.03, backend="spconv")]
    said = finding(pooled(write_records, records))
    assert "looks fastest here, but this run cannot settle it" in said.claim
    assert "not sure" in " ".join(said.sentences)


def test_precisions_of_an_engine_are_compared_event_by_event(write_records, make_record):
    rng = np.random.default_rng(0)
    right = rng.integers(90, 98, 40).tolist()
    worse = [share - 5 for share in right]

    def record(precision, seconds, correct):
        accuracy = {
            "nonzero": float(np.mean(correct)) / 100,
            "event_correct": correct,
            "event_labelled": [100] * 40,
        }
        return make_record(seconds, precision=precision, accuracy=accuracy)

    runs = [record("fp32", 0.05, right), record("bf16", 0.025, worse), record("fp16", 0.03, right)]
    said = finding(pooled(write_records, runs)).sentences
    assert len(said) == 2
    assert "sscn in bf16 takes 0.5" in said[0]
    assert "accuracy is WORSE" in said[0]
    assert "signed-rank test over 40 events" in said[0]
    assert "accuracy is SAME" in said[1]


def test_one_engine_alone_is_not_ranked(write_records, make_record):
    assert "nothing to rank" in finding(pooled(write_records, [make_record()])).claim


def test_changes_come_in_the_order_of_consequence(write_records, run_records, make_record):
    before = run_records(rounds=12)
    after = run_records(rounds=12, factor=1.2, commit="b" * 40)
    lost = [r for r in after if r["cell"]["backend"] == "spconv" and r["cell"]["size"] == 768]
    after = [r for r in after if r not in lost]
    for record in after:
        if record["cell"]["backend"] == "dense" and record["cell"]["size"] == 192:
            record |= {"outcome": "wrong", "reason": "error 0.2"}
    found = changes(
        pooled(write_records, before, "a.jsonl"), pooled(write_records, after, "b.jsonl")
    )
    ranks = [c.judgement.verdict.rank for c in found]
    assert ranks == sorted(ranks)
    assert tally(found).startswith("2 WRONG, 2 MISSING, 6 SLOWER")
    slower = [c for c in found if c.judgement.verdict is Verdict.SLOWER]
    assert {c.measured.engine for c in slower} == {"sscn"}


def test_memory_and_error_are_judged_beside_time(write_records, make_record):
    before = [make_record(round=r, seed=r) for r in range(12)]
    after = [
        make_record(
            round=r,
            seed=99 + r,
            memory={"baseline_bytes": 3e8, "peak_rss_bytes": 7e8},
            error={"rel_rmse": 0.1},
        )
        for r in range(12)
    ]
    found = changes(
        pooled(write_records, before, "a.jsonl"), pooled(write_records, after, "b.jsonl")
    )
    assert {c.metric.unit: c.judgement.verdict for c in found} == {
        "s": Verdict.SAME,
        "bytes": Verdict.HEAVIER,
        "": Verdict.WORSE,
    }


def test_all_engines_together_point_to_the_machine(write_records, run_records):
    before = pooled(write_records, run_records(), "a.jsonl")
    busy = run_records()
    for record in busy:
        record["host_seconds"] = [1.3 * s for s in record["host_seconds"]]
    drift = common_drift(changes(before, pooled(write_records, busy, "b.jsonl")))
    assert drift == pytest.approx(1.3, rel=0.01)
    alone = pooled(write_records, run_records(factor=1.3), "c.jsonl")
    assert common_drift(changes(before, alone)) is None


def test_stolen_time_is_reported_with_the_cell_that_lost_most(write_records, run_records):
    records = run_records()
    assert "The host took" not in run(write_records(records, "quiet.jsonl")).stdout
    for record, stolen in zip(records, (0.01, 0.31, 0.08, None), strict=False):
        record["conditions"] = {"stolen": stolen}
    said = run(write_records(records)).stdout
    assert "The host took up to 31%" in said
    assert records[1]["cell"]["backend"] in said.partition("The host took")[2]
    assert "2 cells above 5%" in said


def test_one_run_prints_engines_outcomes_and_reasons(write_records, run_records):
    result = run(write_records(run_records()))
    assert result.exit_code == 0
    for word in ("sscn", "spconv", "dense", "out-of-memory", "needs 31 GB of 8 GB", "512 px"):
        assert word in result.output


def test_engines_that_are_not_installed_are_listed_once(write_records, run_records, make_record):
    missing = [
        make_record(backend="torchsparse", size=s, outcome="unavailable", reason="not installed")
        for s in (192, 512, 768)
    ]
    before = write_records(run_records() + missing, "a.jsonl")
    assert run(before).output.count("torchsparse is not available here: not installed") == 1
    assert run(before).output.count("torchsparse") == 1
    after = write_records(run_records() + missing[:1], "b.jsonl")
    assert "torchsparse" not in run(before, after, "--format", "csv").output


def test_brackets_in_a_reason_are_printed_as_they_are(write_records, make_record):
    path = write_records([make_record(outcome="crashed", reason="[enforce fail at x:1] err")])
    assert "[enforce fail at x:1] err" in run(path).output


def test_two_runs_print_what_changed_and_count_the_rest(write_records, run_records):
    before = write_records(run_records(rounds=12), "a.jsonl")
    after = write_records(run_records(rounds=12, factor=1.1), "b.jsonl")
    result = run(before, after)
    assert result.exit_code == 0
    assert "SLOWER" in result.output
    assert "6 SLOWER" in result.output
    assert "SAME" in result.output


def test_a_run_measured_against_another_commit_is_compared_with_it(write_records, run_records):
    write_records(run_records(rounds=12), "run.against.jsonl")
    after = write_records(run_records(rounds=12, factor=1.1), "run.jsonl")
    result = run(after, "--fail-on", "slower")
    assert result.exit_code == 1
    assert "failed on 6 SLOWER" in result.output


def test_the_seconds_of_tuning_are_listed_with_the_cell(make_record, write_records):
    taken = [make_record(tuning_seconds=s, round=i) for i, s in enumerate((4.0, 6.0, 5.0))]
    (row,) = csv.DictReader(io.StringIO(run(write_records(taken), "--format", "csv").output))
    assert float(row["tuning_seconds"]) == 5
    assert ("warm-up, with compilation and tuning", "4 s to 6 s") in facts(
        read(write_records(taken))
    )


def test_versions_that_differ_stand_in_the_headline(write_records, run_records):
    def measured(version, **changes):
        found = run_records(rounds=2, **changes)
        for record in found:
            record["versions"] = {"torch": "2.13.0", record["cell"]["backend"]: version}
        return found

    before = write_records(measured("2.3.6"), "run.against.jsonl")
    after = write_records(measured("2.3.8"), "run.jsonl")
    found = changes(summarize(read(before)), summarize(read(after)))
    engines = dict.fromkeys(c.measured.cell.backend for c in found)
    words = [f"{engine} 2.3.6 to 2.3.8" for engine in engines]
    said = headline(found)
    assert sorted(said.partition(": ")[0].split(", ")) == sorted(words)
    assert said.endswith(tally(found))
    assert said in " ".join(run(after).output.split())


def test_environments_with_the_same_versions_stand_in_the_headline(write_records, run_records):
    earlier = [record | {"environment": "old/bin/python"} for record in run_records(rounds=2)]
    before = write_records(earlier, "run.against.jsonl")
    after = write_records(run_records(rounds=2), "run.jsonl")
    said = "environment old/bin/python to default with the same version"
    assert said in " ".join(run(before, after).output.split())


@pytest.mark.parametrize(
    ("gates", "code"),
    [("slower", 1), ("missing", 0), ("wrong", 0), ("missing, slower", 1), ("heavier,worse", 0)],
)
def test_gates_set_the_exit_code(write_records, run_records, gates, code):
    before = write_records(run_records(rounds=12), "a.jsonl")
    after = write_records(run_records(rounds=12, factor=1.1), "b.jsonl")
    assert run(before, after, "--fail-on", gates).exit_code == code


def test_a_lost_cell_trips_the_gate_for_missing(write_records, run_records):
    records = run_records()
    before = write_records(records, "a.jsonl")
    after = write_records(records[1:], "b.jsonl")
    result = run(before, after, "--fail-on", "missing")
    assert result.exit_code == 1
    assert "measured before, not measured after" in result.output


def test_a_wrong_result_trips_its_gate_in_a_single_run(write_records, make_record):
    path = write_records([make_record(), make_record(backend="x", outcome="wrong")])
    assert run(path, "--fail-on", "wrong").exit_code == 1
    assert run(path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fail-on", "slwer"], "not 'slwer'"),
        (["--fail-on", "slower"], "needs two runs"),
        (["nowhere.jsonl"], "neither a file"),
    ],
)
def test_bad_input_is_one_sentence(write_records, run_records, arguments, words):
    path = write_records(run_records())
    if arguments[0].startswith("--"):
        arguments = [path, *arguments]
    result = run(*arguments)
    assert isinstance(result.exception, BadInput)
    assert words in str(result.exception)


def test_a_file_without_records_says_how_to_make_some(write_records):
    result = run(write_records([]))
    assert isinstance(result.exception, BadInput)
    assert "harness run" in str(result.exception)


@pytest.mark.parametrize("two", [False, True])
def test_every_format_holds_the_same_rows(write_records, run_records, two):
    before = write_records(run_records(), "a.jsonl")
    after = write_records(run_records(), "b.jsonl")
    paths = [before, after] if two else [after]
    as_json = json.loads(run(*paths, "--format", "json").output)
    as_csv = list(csv.DictReader(io.StringIO(run(*paths, "--format", "csv").output)))
    as_markdown = run(*paths, "--format", "markdown").output.strip().splitlines()
    assert len(as_json) == len(as_csv) == len(as_markdown) - 2 > 10
    assert list(as_json[0]) == list(as_csv[0])
    assert all(math.isfinite(v) for row in as_json for v in row.values() if type(v) is float)


def test_one_slower_cell_among_many_is_found(write_records, make_record):
    rng = np.random.default_rng(0)
    before, after = [], []
    for event in range(300):
        for number in range(12):
            seeds = rng.integers(0, 2**31, 2)
            slow = 1.5 if event == 7 else 1.0
            shared = {"event_seed": event, "round": number}
            before.append(make_record(0.05, seed=seeds[0], **shared))
            after.append(make_record(0.05 * slow, seed=seeds[1], **shared))
    found = changes(
        pooled(write_records, before, "a.jsonl"), pooled(write_records, after, "b.jsonl")
    )
    (slower,) = [c for c in found if c.judgement.verdict is Verdict.SLOWER]
    assert slower.measured.cell.events.seed == 7
    assert not [c for c in found if c.judgement.verdict is Verdict.FASTER]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (None, "–"),
        (1.0, "1×"),
        (0.9999, "1×"),
        (0.0451, "22.2× slower"),
        (5.874, "5.87× faster"),
        (3964.2, "3,964× faster"),
        (1 / 3964.2, "3,964× slower"),
    ],
)
def test_losers_are_slower_and_winners_faster(ratio, text):
    assert speed(ratio) == text
