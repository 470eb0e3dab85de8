"""Known defects of engines, as data, and how they are handled here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Defect:
    """A defect of an engine that the agreement tests have found.

    Attributes
    ----------
    engine : str
        Its name in the registry.
    symptom : str
        The wrong behaviour.
    device : str
        The device on which it occurs; empty for all.
    handled : str
        How it is handled here.
    test : str
        Part of the names of the tests that fail with it; empty if none does.
    """

    engine: str
    symptom: str
    device: str = ""
    handled: str = "an expected failure of the agreement tests"
    test: str = ""


def known(engine: str = "") -> list[Defect]:
    """Return the known defects of an engine, or of all engines."""
    text = (resources.files("backends") / "defects.toml").read_text(encoding="utf-8")
    found = [Defect(**entry) for entry in tomllib.loads(text)["failure"]]
    return [defect for defect in found if engine in ("", defect.engine)]
