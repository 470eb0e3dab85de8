"""The archive of a submission: a ZIP file with a manifest and records, read with limits.

The manifest names the machine, the environment and the commands, and has the digest of the records.
Both members are text, and nothing is ever unpacked to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson

from harness.errors import BadInput
from harness.files import check_target, write_bytes
from harness.results.validation import fields_problem
from harness.spec.fields import Field

FORMAT = 1
MANIFEST, RECORDS = "manifest.json", "records.jsonl"
LIMITS = {MANIFEST: 1 << 20, RECORDS: 64 << 20}
"""Largest size of each member in bytes."""

LONGEST_TEXT = 1 << 16
"""Characters of a text in an archive."""

_DATE = (2018, 1, 1, 0, 0, 0)  # of the members, so that equal records give equal archives


class BadArchive(BadInput):
    """A file that is no archive of a submission, with the reason."""


@dataclass(frozen=True)
class Manifest:
    """Description of the records of a submission.

    Attributes
    ----------
    format : int
        Version of the archive's format.
    records : int
        Number of records.
    sha256 : str
        Digest of all lines of records.
    commands : tuple of str
        The commands that measure the same again.
    machine : tuple of str
        The machine, the versions and the conditions, as ``name: value``.
    packages : tuple of str
        Packages of the environment, as ``name==version``; empty if the records were measured in
        another environment than they were packed in.
    """

    format: Annotated[int, Field("Version of the format.", least=1)]
    records: Annotated[int, Field("Number of records.", least=0)]
    sha256: Annotated[str, Field("Digest of all lines.", pattern="[0-9a-f]{64}")]
    commands: tuple[str, ...] = ()
    machine: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """A submission in memory: the manifest and the lines of records."""

    manifest: Manifest
    lines: bytes

    @property
    def sha256(self) -> str:
        """Digest of the lines as they are."""
        return hashlib.sha256(self.lines).hexdigest()


def make_submission(records: Sequence[Mapping[str, Any]], **about: Any) -> Submission:
    """Return the submission of some records; the parameters are the fields of ``Manifest``."""
    lines = b"".join(orjson.dumps(record) + b"\n" for record in records)
    digest = hashlib.sha256(lines).hexdigest()
    return Submission(Manifest(FORMAT, len(records), digest, **about), lines)


def write_archive(path: Path, submission: Submission) -> None:
    """Write the archive of a submission; equal submissions give equal files.

    Raises
    ------
    BadInput
        If the file cannot be written.
    """
    check_target(path, "--out")
    content = io.BytesIO()
    manifest = json.dumps(asdict(submission.manifest), indent=1).encode() + b"\n"
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in ((MANIFEST, manifest), (RECORDS, submission.lines)):
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    write_bytes(path, content.getvalue(), "--out")


def read_archive(path: Path) -> Submission:
    """Read the archive of a submission, whatever the file is.

    Raises
    ------
    BadArchive
        If the file is no archive with exactly these two members, they exceed their limits or their
        checksums, or the manifest is not valid.
    BadInput
        If the file cannot be read.
    """
    members = _members(_content(path))
    try:
        values = orjson.loads(members[MANIFEST])
    except ValueError:
        raise BadArchive(f"{MANIFEST} is no valid JSON") from None
    wrong = fields_problem(Manifest, values) or text_problem(values)
    if wrong:
        raise BadArchive(f"{MANIFEST}: {wrong}")
    if values["format"] > FORMAT:
        raise BadArchive(
            f"the archive has format {values['format']}, newer than {FORMAT}; update sscn-bench"
        )
    values |= {name: tuple(values.get(name, ())) for name in ("commands", "machine", "packages")}
    return Submission(Manifest(**values), members[RECORDS])


def _content(path: Path) -> bytes:
    """Return the content of a file that is regular and not larger than its members may be."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadArchive(f"{path} is no regular file")
        if found.st_size > sum(LIMITS.values()):
            raise BadArchive(f"{path} has {found.st_size} bytes, more than any submission")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None


def _members(content: bytes) -> dict[str, bytes]:
    """Return the content of both members."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if sorted(names) != sorted(LIMITS):
                listed = ", ".join(map(repr, names[:4])) or "nothing"
                raise BadArchive(
                    f"the archive holds {listed[:200]} instead of {MANIFEST} and {RECORDS}"
                )
            return {info.filename: _member(archive, info) for info in infos}
    except BadArchive:
        raise
    except Exception:  # zipfile raises whatever its parsers raise
        raise BadArchive("the file is no ZIP archive, or a damaged one") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    limit = LIMITS[info.filename]
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BadArchive(f"{info.filename} is a link")
    if info.flag_bits & 1:
        raise BadArchive(f"{info.filename} is encrypted")
    with archive.open(info) as member:
        text = member.read(limit + 1)  # the size in the header may be wrong
    if len(text) > limit:
        raise BadArchive(f"{info.filename} has more than {limit >> 20} MB")
    return text


def text_problem(value: Any) -> str:
    """Return what is wrong with the texts in JSON values; empty if nothing."""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return f"a text has {len(value)} characters, more than {LONGEST_TEXT}"
        if not value.isprintable():
            return f"the text {value[:40]!r} has characters that cannot be printed"
        return ""
    parts: Sequence[Any] = ()
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    return next((wrong for part in parts if (wrong := text_problem(part))), "")
