"""The rules that a submission must keep to be published, each with its sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from backends.agreement import TOLERANCE
from harness.compare.comparison import MUCH_STOLEN
from harness.events.sample import SHA256
from harness.results.validation import problem
from harness.spec.cell import STACKS
from harness.submissions.archive import (
    BadArchive,
    Submission,
    read_archive,
    text_problem,
)
from harness.submissions.packing import PRIVATE

MOST_THROTTLED = 0.05
"""Largest share of a cell's samples that may be taken while the GPU's clock was held down."""

OWN_NETWORKS = ("dense-study",)
"""Engines that compute another function, which no float64 result is known of."""

Record = Mapping[str, Any]
Rule = Callable[[Record], str]


def check_file(path: Path) -> tuple[Submission | None, list[str]]:
    """Check an archive.

    Parameters
    ----------
    path : Path
        Any file.

    Returns
    -------
    submission : Submission or None
        None if the file is no archive of a submission.
    reasons : list of str
        One sentence per broken rule, with the number of records that break it; empty if the
        submission keeps all rules.

    Raises
    ------
    BadInput
        If the file cannot be read.
    """
    try:
        found = read_archive(path)
    except BadArchive as error:
        text = str(error)
        return None, [f"{text[0].upper()}{text[1:]}."]
    return found, check(found)


def check(submission: Submission) -> list[str]:
    """Return one sentence per rule that a submission breaks."""
    manifest = submission.manifest
    if submission.sha256 != manifest.sha256:
        return ["The records were edited after they were packed: their digest differs."]
    lines = [line for line in submission.lines.split(b"\n") if line]
    if len(lines) != manifest.records:
        return [f"The manifest counts {manifest.records} records, and there are {len(lines)}."]
    try:
        records = list(_valid(lines))
    except ValueError as error:
        return [f"{error}."]
    if not any(record["outcome"] == "ok" for record in records):
        return ["No record has a time: there is nothing to publish."]
    return list(_broken(records))


def _valid(lines: Sequence[bytes]) -> Iterator[Record]:
    """Yield the records of some lines.

    Raises
    ------
    ValueError
        At the first line that is no valid record.
    """
    for number, line in enumerate(lines, 1):
        try:
            record = orjson.loads(line)
        except ValueError:
            raise ValueError(f"Line {number} is no valid JSON") from None
        wrong = problem(record).removesuffix("; left out") or text_problem(record)
        if wrong:
            raise ValueError(f"Line {number} is no valid record: {wrong}")
        yield record


def _broken(records: Sequence[Record]) -> Iterator[str]:
    for rule in RULES:
        found = [(record, reason) for record in records if (reason := rule(record))]
        if found:
            record, reason = found[0]
            cell = record["cell"]
            where = f"{cell['backend']}, {cell['size']} px, {cell['phase']}, {cell['map']}"
            more = f" (and {len(found) - 1} more records)" if len(found) > 1 else ""
            yield f"{reason}: {where}{more}."


def _dirty(record: Record) -> str:
    if record["dirty"] or not record["commit"]:
        return "The code had changes that are not committed"
    return ""


def _other_events(record: Record) -> str:
    cell = record["cell"]
    events = cell["events"]
    if events["set"] != "sample":
        return "The events are not those of the packed sample"
    if events["sha256"] != SHA256.get(cell["size"]):
        return "The hash of the events is not that of the packed sample"
    return ""


def _without_agreement(record: Record) -> str:
    if record["outcome"] != "ok" or record["cell"]["backend"] in OWN_NETWORKS:
        return ""
    error = record["error"]
    names = ["rel_rmse"]
    if record["cell"]["phase"] == "step":
        names.append("grad_rel_rmse")
    if any(error.get(name) is None for name in names):
        return "A time has no comparison with the float64 result"
    return ""


def _failed_agreement(record: Record) -> str:
    error, cell = record["error"], record["cell"]
    if record["outcome"] != "ok" or cell["phase"] in STACKS:
        return ""
    allowed = TOLERANCE[cell["precision"]]
    for name, most in (("rel_rmse", allowed.forward), ("grad_rel_rmse", allowed.gradient)):
        value = error.get(name)
        if value is not None and not value <= most:
            return f"A time has an error of {value:.1e}, and {most:.0e} is allowed"
    return ""


def _throttled(record: Record) -> str:
    samples = record["host_seconds"]
    share = len(record.get("throttled") or []) / max(1, len(samples))
    if share > MOST_THROTTLED:
        return f"The GPU's clock was held down in {share:.0%} of the samples"
    return ""


def _disturbed(record: Record) -> str:
    stolen = (record.get("conditions") or {}).get("stolen")
    if record["outcome"] == "ok" and stolen is not None and stolen >= MUCH_STOLEN:
        return f"The host took {stolen:.0%} of the processors' time for others"
    return ""


def _named(record: Record) -> str:
    if any(name in record["machine"] for name in PRIVATE):
        return "A record names its host or its GPU; pack it with: submit pack"
    return ""


RULES: tuple[Rule, ...] = (
    _dirty,
    _other_events,
    _without_agreement,
    _failed_agreement,
    _throttled,
    _disturbed,
    _named,
)
