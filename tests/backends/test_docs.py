"""The page on engines says what the tests and the registry say."""

import tomllib
from pathlib import Path

from backends import registry

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "engines.md").read_text()


def test_every_engine_has_a_row():
    for name in registry.BUILT_IN:
        assert f"| `{name}` |" in PAGE


def test_every_defect_is_documented():
    for entry in tomllib.loads((HERE / "expected_failures.toml").read_text())["failure"]:
        assert entry["symptom"] in PAGE
        assert entry.get("handled", "an expected failure of the agreement tests") in PAGE
        assert entry["engine"] in registry.BUILT_IN


def test_determinism_is_documented():
    listed = tomllib.loads((HERE / "determinism.toml").read_text())
    sentence = next(
        line for line in PAGE.splitlines() if "the same bits for the same input" in line
    )
    for phase in listed.values():
        assert all(phase.values())
        assert all(f"`{engine}`" in sentence for engine in phase)
