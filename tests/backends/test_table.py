"""The table of engines shows what the probes found."""

import io

from rich.console import Console

from backends import registry
from backends.capabilities import Capabilities
from backends.table import INSTALL, absences, engines_table


def text_of(*answers):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(engines_table(answers))
    return console.export_text()


def test_a_present_engine_shows_all_it_can():
    can = Capabilities(
        "9.8", ("cpu", "cuda"), {"cpu": ("fp32",), "cuda": ("tf32", "fp16")}, dims=(3,),
        training=False, options={"algorithm": ("a", "b[c]")}, note="mind the gap",
    )  # fmt: skip
    shown = text_of(registry.Availability("engine", can))
    for words in ("9.8", "cpu: fp32", "cuda: tf32, fp16", "3D", "inference", "mind the gap"):
        assert words in shown
    assert "algorithm: a, b[c]" in shown
    assert "2D" not in shown
    assert "training" not in shown


def test_an_unavailable_engine_has_a_reason_and_an_install_instruction():
    [line] = absences([registry.Availability("fvdb", None, "not installed: No module [fvdb]")])
    assert line.startswith("fvdb: not installed: No module [fvdb]")
    assert "source distribution" in line


def test_an_engine_is_in_the_table_or_among_the_absent():
    here = registry.Availability("here", Capabilities("1", ("cpu",), {"cpu": ("fp32",)}))
    away = registry.Availability("away", None, "not installed")
    assert "away" not in text_of(here, away)
    assert [line.partition(":")[0] for line in absences([here, away])] == ["away"]


def test_an_engine_without_its_device_says_what_it_lacks():
    shown = text_of(registry.Availability("x", Capabilities("1", (), {}, missing="a CUDA device")))
    assert "lacks a CUDA device" in shown


def test_every_engine_of_others_has_an_install_instruction():
    assert set(INSTALL) == set(registry.BUILT_IN) - {"sscn", "dense", "dense-study"}
