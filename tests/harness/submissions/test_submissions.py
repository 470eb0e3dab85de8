"""Submissions: nothing of the user is packed, rules are kept, hostile archives are survived."""

import hashlib
import io
import json
import stat
import zipfile

import pytest

from harness.__main__ import main
from harness.events.sample import SHA256
from harness.submissions.archive import FORMAT, MANIFEST, RECORDS, Manifest, make_submission
from harness.submissions.packing import Owner, pack
from harness.submissions.rules import check_file

EVENTS = {"set": "sample", "sha256": SHA256[192], "seed": 4}


@pytest.fixture
def make(make_record):
    def valid(**changes):
        events = changes.pop("events", EVENTS)
        record = make_record(**changes)
        record["cell"]["events"] = events
        record["machine"] = {"host": "darkstar", "processor": "Example CPU", "threads": 2}
        return record

    return valid


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in arguments])
    return ended.value.code


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


def submitted(records, **about):
    """The members of a submission that somebody else's program has made."""
    found = make_submission(records, **about)
    return {MANIFEST: json.dumps(vars(found.manifest)), RECORDS: found.lines}


def test_a_run_is_packed_and_keeps_all_rules(write_records, make, tmp_path, capfd):
    run = write_records([make(), make(backend="spconv"), make(backend="ocnn", outcome="crashed")])
    out = tmp_path / "mine.zip"
    assert not call("submit", "pack", run, "--out", out)
    shown = capfd.readouterr().out
    assert "3 records" in shown
    assert "processor: Example CPU" in shown
    assert "python -m harness run inference" in shown
    assert "darkstar" not in shown
    assert not call("submit", "check", out)
    assert "3 records keep all rules" in capfd.readouterr().out
    manifest = json.loads(members(out)[MANIFEST])
    assert any("git checkout" in line for line in manifest["commands"])


def test_equal_runs_give_equal_archives(write_records, make, tmp_path):
    run = write_records([make()])
    for name in ("a.zip", "b.zip"):
        assert not call("submit", "pack", run, "--out", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_nothing_of_the_user_is_packed(write_records, make):
    record = make(outcome="crashed", backend="ocnn")
    record["reason"] = "cannot open /home/mustermann/private/secret/net.py on darkstar (mustermann)"
    record["note"] = "not a field of records"
    record["machine"] |= {"gpu_uuid": "GPU-1234", "name": "my desk"}
    found = pack([str(write_records([make(), record]))], Owner(("mustermann", "root", "vm")))
    text = found.lines.decode() + repr(found.manifest)
    for private in ("mustermann", "darkstar", "/home", "secret", "GPU-1234", "my desk", "a field"):
        assert private not in text, private
    assert "cannot open …/net.py on … (…)" in text


def test_encoded_labels_are_no_path(write_records, make):
    record = make()
    record["accuracy"] = {"shown_labels": "eNr+/home/mustermann/aGVsbG8="}
    found = pack([str(write_records([record]))], Owner(("mustermann",)))
    assert record["accuracy"]["shown_labels"] in found.lines.decode()


def test_short_names_stay_words():
    assert Owner(("al", "root", "")).without("al in all, root of") == "al in all, root of"


BROKEN = [
    ({"dirty": True}, "not committed"),
    ({"commit": ""}, "not committed"),
    ({"events": EVENTS | {"set": "mine.root"}}, "not those of the packed sample"),
    ({"events": EVENTS | {"sha256": "0" * 64}}, "hash of the events"),
    ({"error": {}}, "no comparison with the float64 result"),
    ({"phase": "step"}, "no comparison with the float64 result"),
    ({"error": {"rel_rmse": 1e-3}}, "an error of 1.0e-03, and 1e-05 is allowed"),
    ({"throttled": [0, 1, 2]}, "clock was held down in 33%"),
    ({"conditions": {"stolen": 0.2}}, "took 20%"),
]


@pytest.mark.parametrize(("changes", "reason"), BROKEN)
def test_a_broken_rule_has_a_sentence(write_records, make, tmp_path, capfd, changes, reason):
    run = write_records([make(), make(**changes)])
    out = tmp_path / "mine.zip"
    assert call("submit", "pack", run, "--out", out) == 2
    assert reason in capfd.readouterr().err
    assert not out.exists()


def test_runs_without_a_time_are_refused(write_records, make, tmp_path, capfd):
    run = write_records([make(outcome="unavailable")])
    assert call("submit", "pack", run, "--out", tmp_path / "mine.zip") == 2
    assert "No record has a time" in capfd.readouterr().err


def link(content):
    entry = zipfile.ZipInfo(RECORDS)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(MANIFEST, content[MANIFEST])
        archive.writestr(entry, "/etc/passwd")
    return stream.getvalue()


def bomb(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, content[MANIFEST])
        with archive.open(RECORDS, "w") as member:
            for _ in range(70):
                member.write(bytes(1 << 20))
    return stream.getvalue()


def twice(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(MANIFEST, content[MANIFEST])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(MANIFEST, content[MANIFEST])
    return stream.getvalue()


def zipped(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return stream.getvalue()


def with_manifest(content, **changes):
    values = json.loads(content[MANIFEST]) | changes
    return zipped(content | {MANIFEST: json.dumps(values)})


def renamed(content, name):
    return zipped({MANIFEST: content[MANIFEST], name: content[RECORDS]})


def damaged(content):
    whole = bytearray(zipped(content))
    whole[len(whole) // 3] ^= 0xFF
    return bytes(whole)


HOSTILE = {
    "empty": (lambda c: b"", "no ZIP archive"),
    "no archive": (lambda c: b"#!/bin/sh\nrm -rf .\n", "no ZIP archive"),
    "cut": (lambda c: zipped(c)[:-30], "no ZIP archive"),
    "damaged": (damaged, "no ZIP archive, or a damaged one"),
    "no member": (lambda c: zipped({}), "holds nothing"),
    "records only": (lambda c: zipped({RECORDS: c[RECORDS]}), "instead of manifest.json"),
    "more members": (lambda c: zipped(c | {"run.sh": "rm -rf ."}), "instead of manifest.json"),
    "path upwards": (lambda c: renamed(c, "../records.jsonl"), "'../records.jsonl'"),
    "absolute path": (lambda c: renamed(c, "/etc/cron.d/x"), "'/etc/cron.d/x'"),
    "twice": (twice, "instead of manifest.json"),
    "link": (link, "is a link"),
    "bomb": (bomb, "more than 64 MB"),
    "large manifest": (lambda c: with_manifest(c, machine=["x" * (1 << 21)]), "more than 1 MB"),
    "long text": (lambda c: with_manifest(c, machine=["x" * 70_000]), "70000 characters"),
    "manifest is no JSON": (lambda c: zipped(c | {MANIFEST: "{"}), "no valid JSON"),
    "manifest is a list": (lambda c: zipped(c | {MANIFEST: "[]"}), "not an object"),
    "nested": (lambda c: zipped(c | {MANIFEST: "[" * 100_000}), "no valid JSON"),
    "wrong type": (lambda c: with_manifest(c, records="three"), "not a whole number"),
    "newer format": (lambda c: with_manifest(c, format=99), "newer than 1"),
    "control characters": (
        lambda c: with_manifest(c, machine=["\x1b]0;owned\x07"]),
        "cannot be printed",
    ),
    "edited": (
        lambda c: zipped(c | {RECORDS: c[RECORDS].replace(b"sscn", b"mine")}),
        "edited after they were packed",
    ),
    "other count": (lambda c: with_manifest(c, records=7), "counts 7 records"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_and_hostile_archives_are_refused(name, make, tmp_path, capfd):
    content, reason = HOSTILE[name]
    record = make()
    del record["machine"]["host"]
    path = tmp_path / "theirs.zip"
    path.write_bytes(content(submitted([record])))
    before = sorted(tmp_path.iterdir())
    assert call("submit", "check", path) == 2
    said = capfd.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert said.isprintable() or said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before  # nothing is unpacked


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host_seconds": [-1.0]}, "host_seconds"),
        ({"outcome": "splendid"}, "outcome"),
        ({"reason": "a\x1b[2Jb"}, "cannot be printed"),
        ({"machine": {"host": "darkstar"}}, "names its host"),
    ],
)
def test_records_of_others_are_checked_field_by_field(make, tmp_path, changes, reason):
    path = write_zip(tmp_path / "theirs.zip", submitted([make() | changes]))
    _, reasons = check_file(path)
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_a_line_that_is_no_record_is_named(tmp_path):
    lines = b"{]\n"
    manifest = Manifest(FORMAT, 1, hashlib.sha256(lines).hexdigest())
    path = write_zip(
        tmp_path / "theirs.zip", {MANIFEST: json.dumps(vars(manifest)), RECORDS: lines}
    )
    assert check_file(path)[1] == ["Line 1 is no valid JSON."]


def test_no_regular_file_is_read(tmp_path, capfd):
    assert call("submit", "check", tmp_path) == 2
    assert call("submit", "check", tmp_path / "none.zip") == 2
    assert "cannot read" in capfd.readouterr().err
