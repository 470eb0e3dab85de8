"""The page on engines says what the tests and the registry say."""

import tomllib
from pathlib import Path

from backends import defects, registry

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "engines.md").read_text()


def test_every_engine_has_a_row():
    for name in registry.BUILT_IN:
        assert f"| `{name}` |" in PAGE


def test_every_defect_is_documented():
    for defect in defects.known():
        assert defect.symptom in PAGE
        assert defect.handled in PAGE
        assert defect.engine in registry.BUILT_IN


def test_determinism_is_documented():
    listed = tomllib.loads((HERE / "determinism.toml").read_text())
    sentence = next(
        line for line in PAGE.splitlines() if "the same bits for the same input" in line
    )
    for phase in listed.values():
        assert all(phase.values())
        assert all(f"`{engine}`" in sentence for engine in phase)
