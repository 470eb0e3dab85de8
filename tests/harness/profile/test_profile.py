"""The file of a profile: what it says, and what is wrong with a bad one."""

import json

import pytest

from harness.errors import BadInput
from harness.profile.profile import (
    HeldMemory,
    LayerProfile,
    MemoryProfile,
    Profile,
    read_profile,
    write_profile,
)
from harness.spec.cell import Cell

CELL = Cell("profile", "sscn", 192, 4, "step", "cold")


def made(**changes):
    values = {
        "cell": CELL,
        "code": {"commit": "0123", "dirty": False},
        "machine": {"threads": 2},
        "versions": {"torch": "2"},
        "seconds": 2.0,
        "instrumented_seconds": 2.1,
        "layers": (
            LayerProfile("stem", 0, "convolution", "forward", 1, 1.5, 100, 200, 10),
            LayerProfile("host", None, "host", "forward", 1, 0.4),
        ),
        "ceilings": {"copy": 1e9},
        "memory": MemoryProfile(
            100, 300, 190, (HeldMemory("stem", "map", 190),), ((0.0, 0), (1.0, 200))
        ),
    }
    return Profile(**values | changes)


def test_a_profile_survives_its_file(tmp_path):
    write_profile(made(), tmp_path)
    assert read_profile(tmp_path) == made()
    assert read_profile(tmp_path / "profile.json") == made()


def test_a_stored_profile_with_fields_of_earlier_versions_loads():
    values = made().to_json() | {"counters": {"cycles": 5}, "notes": ["a note"]}
    assert Profile.from_json(values) == made()


def test_ratio_of_layers_and_share_of_explained_memory():
    profile = made()
    assert profile.layer_sum_ratio == pytest.approx(0.95)
    assert profile.memory.share_explained == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.update(schema=2), "schema 2"),
        (lambda v: v.pop("schema"), "schema None"),
        (lambda v: v.pop("layers"), "lacks the field 'layers'"),
        (lambda v: v.update(colour="red"), "'colour'"),
        (lambda v: v["layers"][0].update(kind="magic"), "kind must be one of"),
        (lambda v: v["layers"][0].update(direction="sideways"), "direction must be one of"),
        (lambda v: v["layers"][0].update(seconds=-1), "time of at least 0"),
        (lambda v: v["layers"][0].update(calls=1.5), "whole number"),
        (lambda v: v["layers"].append(v["layers"][0]), "listed twice"),
        (lambda v: v["memory"].update(timeline=[[1]]), "[seconds, bytes]"),
        (lambda v: v["memory"]["at_peak"][0].update(kind="gold"), "at_peak kind"),
        (lambda v: v.update(cell={"size": 1}), "cell"),
        (lambda v: v.update(layers=3), "layers must be a list"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, change, word):
    values = json.loads(json.dumps(made().to_json()))
    change(values)
    (tmp_path / "profile.json").write_text(json.dumps(values))
    with pytest.raises(BadInput) as error:
        read_profile(tmp_path)
    assert word in str(error.value)
    assert "profile.json" in str(error.value)


def test_a_file_that_is_no_profile_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read the profile"):
        read_profile(tmp_path / "none.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(BadInput, match="is not a profile"):
        read_profile(tmp_path / "half.json")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="give another folder with --out"):
        write_profile(made(), tmp_path / "file" / "folder")
