"""Packing of runs: their records without anything of the user, and what describes them."""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.instruments import machine
from harness.report import provenance
from harness.results import store
from harness.results.record import Machine, Record
from harness.submissions.archive import Submission, make_submission

PRIVATE = ("host", "gpu_uuid")
"""Fields of the machine that name this one machine."""

_PATH = re.compile(r"(?<![\w./:-])/(?:[^\s/'\",:;()]+/)+")
"""The folders of an absolute path; the name of the file stays."""

_ENCODED = ("shown_labels",)
"""Fields with numbers in base64, in which a path would be by chance."""

_COMMON_NAMES = 3
"""Characters up to which a name of a user or a host may be a word of a sentence."""


@dataclass(frozen=True)
class Owner:
    """Names of the user and the host, which are removed from texts.

    Attributes
    ----------
    names : tuple of str
        The names; those of up to three characters, and ``root``, are not removed.
    """

    names: tuple[str, ...]

    @classmethod
    def here(cls) -> Owner:
        """Return the names of this user and this host."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # an account without a name
            user = ""
        return cls((user, Path.home().name, platform.node(), platform.node().partition(".")[0]))

    def without(self, text: str) -> str:
        """Return a text on one line without folders of paths and without these names."""
        text = _PATH.sub("…/", " ".join(text.split()))
        for name in sorted(set(self.names), key=len, reverse=True):
            if len(name) > _COMMON_NAMES and name != "root":
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
        return text


def pack(runs: Sequence[str], owner: Owner | None = None) -> Submission:
    """Return the submission of some runs.

    Parameters
    ----------
    runs : sequence of str
        As for ``harness.results.store.resolve``.
    owner : Owner, optional
        Whose names are removed; by default this user's and this host's.

    Raises
    ------
    BadInput
        If there is no such run, or the runs have no record.
    """
    who = owner or Owner.here()
    files = list(dict.fromkeys(file for run in runs for file in store.resolve(run)))
    hosts = {str(record["machine"].get("host", "")) for record in store.records(files)}
    who = Owner((*who.names, *hosts))
    records = [_anonymous(record, who) for record in store.records(files)]
    if not records:
        raise BadInput(f"{', '.join(runs)}: there is no valid record to pack")
    frame = store.read(files)
    about = [
        f"{name}: {value}"
        for name, value in provenance.facts(frame)
        if name not in ("host", "GPU identifier")
    ]
    return make_submission(
        records,
        commands=tuple(who.without(line) for line in provenance.recipe(frame)),
        machine=tuple(who.without(line) for line in about),
        packages=_packages(records),
    )


def _anonymous(record: Mapping[str, Any], owner: Owner) -> dict[str, Any]:
    """Return the defined fields of a record but those that name the machine; clean all texts.

    A cell has no text of the user but the name of a file of events, which the rules refuse.
    """
    facts = {
        name: value
        for name, value in record["machine"].items()
        if name in Machine.__annotations__ and name not in PRIVATE
    }
    return {
        name: value if name == "cell" else _cleaned(value, owner)
        for name, value in {**record, "machine": facts}.items()
        if name in Record.__annotations__
    }


def _cleaned(value: Any, owner: Owner) -> Any:
    if isinstance(value, str):
        return owner.without(value)
    if isinstance(value, Mapping):
        return {
            name: part if name in _ENCODED else _cleaned(part, owner)
            for name, part in value.items()
        }
    if isinstance(value, list) and any(isinstance(part, (str, Mapping, list)) for part in value):
        return [_cleaned(part, owner) for part in value]
    return value


def _packages(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the packages of this environment, if the records were measured in it."""
    here = machine.versions()
    for record in records:
        if any(record["versions"].get(name, here[name]) != here[name] for name in here):
            return ()
    found = {
        f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()
    }
    return tuple(sorted(found, key=str.lower))
