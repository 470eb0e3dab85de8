"""The pages on engines and on measuring say what the tests and the registry say."""

import tomllib
from pathlib import Path

from backends import defects, registry

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE = (DOCS / "engines.md").read_text()


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
    paragraphs = (DOCS / "measuring.md").read_text().split("\n\n")
    sentence = next(
        text for text in paragraphs if "the same bits for the same input" in " ".join(text.split())
    )
    for phase in listed.values():
        assert all(phase.values())
        assert all(f"`{engine}`" in sentence for engine in phase)
