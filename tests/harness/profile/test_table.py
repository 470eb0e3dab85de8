"""The tables of a profile on a narrow terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from harness.profile.table import kinds_table, layers_table
from tests.harness.profile import made


@pytest.mark.parametrize("width", [80, 160])
def test_no_cell_is_cut(width):
    name = "unet.below.below.below.below.encoder.0.conv1"
    profile = made.profile(layers=[replace(made.STEM, name=name), made.NORM, made.HOST])
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(layers_table(profile, width=width))
    console.print(kinds_table(profile, width=width))
    assert "…" not in out.getvalue()
    assert "normalisation" in out.getvalue()
    assert "forward" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= width
