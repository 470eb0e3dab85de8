import copy
import json
from pathlib import Path

import jsonschema
import pytest

from harness.results import schema, store
from harness.results.record import OUTCOMES
from harness.results.validation import problem
from harness.spec.cell import Cell

ROOT = Path(__file__).resolve().parents[3]
STORED = sorted((ROOT / "results").rglob("*.jsonl"))

validator = jsonschema.Draft202012Validator(schema.json_schema())


def full_record(make_record):
    """A record with every field of the definition."""
    values = {
        "cell": make_record()["cell"] | {"layer": "", "options": {"algorithm": "native"}},
        "precision_readback": {"allow_tf32": False, "threads": 2},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "cuda": None},
    }
    record = {"schema": 1, "host_seconds": [0.01, 0.02]}
    for path, kind, field, _ in schema.walk(schema.Record):
        *parents, name = path.split(".")
        at = record
        for parent in parents:
            at = at[parent]
        if path in values:
            at[name] = values[path]
        elif name not in at:
            at[name] = example(kind, field)
    return record


def example(kind, field):
    word = schema.type_name(kind)
    if field.pattern:
        return "2026-01-01T00:00:00Z" if "T" in field.pattern else "abcdef"
    if word.startswith("`"):
        return word.split("`")[1]
    if word == "object":
        return {}
    if word.startswith("list"):
        return ["SW power cap"] if "text" in word else [1]
    if word.startswith("text"):
        return "text"
    if word.startswith("true"):
        return True
    return 1


def test_the_schema_and_the_documentation_are_generated_from_the_definition():
    advice = "run: python -m harness.results.schema"
    assert schema.SCHEMA_FILE.read_text(encoding="utf-8") == schema.schema_text(), advice
    text = schema.DOCS_FILE.read_text(encoding="utf-8")
    assert text == schema.documented(text), advice


def test_every_field_has_a_meaning_and_every_value_a_reader_that_exists():
    for path, kind, field, _ in schema.walk(schema.Record):
        assert field.meaning.endswith("."), path
        if schema.type_name(kind) == "object" and not field.readers:
            continue
        if path.startswith("cell."):
            continue  # its readers are all who read cells
        assert field.readers, path
        for reader in field.readers.split(", "):
            module = ROOT.joinpath(*reader.split("."))
            assert module.with_suffix(".py").is_file() or module.is_dir(), (path, reader)


def test_the_definition_has_the_fields_of_a_cell(make_record):
    cell = Cell("s", "b", 192, 1, "forward", "cold")
    defined = {p for p, *_ in schema.walk(schema.Record) if p.count(".") == 1 and p[:5] == "cell."}
    assert defined == {f"cell.{name}" for name in cell.to_json()} | {"cell.layer", "cell.weights"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_stored_records_satisfy_the_schema_and_the_checks(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        validator.validate(record)
    assert len(list(store.records([path]))) == len(records)


def test_a_record_with_every_field_is_valid(make_record):
    record = full_record(make_record)
    assert problem(record) == ""
    validator.validate(record)


def paths_in(value, prefix=()):
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from paths_in(each, (*prefix, name))
    else:
        yield prefix


def test_a_wrong_type_in_any_field_is_found_and_named(make_record):
    record = full_record(make_record)
    for path in paths_in(record):
        for wrong in ({"a": 1}, [[]], "\x1b[31m", -1e300):
            changed = copy.deepcopy(record)
            at = changed
            for name in path[:-1]:
                at = at[name]
            at[path[-1]] = wrong
            found = problem(changed)
            if validator.is_valid(changed):
                # The schema cannot say that a cell's layer exists, or a sample's position.
                assert not found or path[0] in ("cell", "outliers", "throttled"), (path, wrong)
            else:
                assert path[0] in found, (path, wrong, found)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"host_seconds": [0.1, -0.1]}, "host_seconds[1]: is -0.1, not above 0"),
        ({"host_seconds": [0.0]}, "host_seconds[0]: is 0.0, not above 0"),
        ({"memory": {"peak_rss_bytes": -5}}, "memory.peak_rss_bytes: is -5, less than 0"),
        ({"error": {"rel_rmse": "nan"}}, "error.rel_rmse: is 'nan', not a finite number"),
        ({"error": {"rel_rmse": {"a": 1}}}, "error.rel_rmse: is {'a': 1}, not a finite number"),
        ({"error": {"argmax_agreement": 1.5}}, "error.argmax_agreement: is 1.5, more than 1"),
        ({"conditions": {"stolen": 9e9}}, "conditions.stolen: is 9000000000.0, more than 1"),
        ({"round": 1.5}, "round: is 1.5, not a whole number"),
        ({"round": "1"}, "round: is '1', not a whole number"),
        ({"round": -1}, "round: is -1, less than 0"),
        ({"machine": {"threads": 0}}, "machine.threads: is 0, not above 0"),
        ({"versions": {"torch": 2.13}}, "versions.torch: is 2.13, not text"),
        ({"utc": "yesterday"}, "utc: is 'yesterday', which does not match"),
        ({"outliers": [99]}, "outliers: names a sample that host_seconds does not have"),
    ],
)
def test_values_out_of_range_are_reported_with_file_line_and_field(
    tmp_path, make_record, change, complaint
):
    path = tmp_path / "run.jsonl"
    lines = [make_record(), make_record() | change, make_record()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.warns(store.BadRecord) as caught:
        assert len(store.read(path)) == 2
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"{path}:2: {complaint}")


def test_nan_is_no_json(tmp_path, make_record):
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(make_record(error={"rel_rmse": float("nan")})) + "\n")
    with pytest.warns(store.BadRecord, match=":1: not a whole JSON record"):
        assert store.read(path).empty


def test_outcomes_are_listed_once_from_best_to_worst():
    assert OUTCOMES[0] == "ok"
    assert OUTCOMES[-1] == "wrong"
