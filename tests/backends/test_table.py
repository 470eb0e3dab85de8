"""The table of engines shows what the probes found."""

import io

from rich.console import Console

from backends import registry
from backends.capabilities import Capabilities
from backends.table import INSTALL, engines_table


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


def test_an_absent_engine_shows_why_and_how_it_gets_here():
    shown = text_of(registry.Availability("fvdb", None, "not installed: No module [fvdb]"))
    assert "not installed: No module [fvdb]" in shown
    assert "source distribution" in shown


def test_an_engine_without_its_device_says_what_it_lacks():
    shown = text_of(registry.Availability("x", Capabilities("1", (), {}, missing="a CUDA device")))
    assert "lacks a CUDA device" in shown


def test_whatever_does_not_come_with_us_says_how_it_comes():
    assert set(INSTALL) == set(registry.BUILT_IN) - {"sscn", "dense", "dense-study"}
