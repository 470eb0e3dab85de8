"""Adapters call engines that cannot run here as the source of their recipe's version wants it."""

import ast
import json

import pytest

from tests.backends import engine_calls
from tests.backends.engine_calls import OBJECTS, RECORD, adapters, bind, version

RECORDED = json.loads(RECORD.read_text())


@pytest.mark.parametrize("name", OBJECTS)
def test_signatures_are_those_of_the_recipe(name):
    assert RECORDED[name]["version"] == version(name)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_name_is_in_the_source(name):
    known = RECORDED[name]["names"]
    values = {each for each, entry in known.items() if entry is None}
    for adapter in adapters(name):
        assert adapter.unknown == []
        for used in adapter.names - set(known):  # of an object that is none of the engine's
            assert any(used.startswith(f"{value}.") for value in values), f"{adapter.file}: {used}"


@pytest.mark.parametrize("name", OBJECTS)
def test_every_call_binds(name):
    known = RECORDED[name]["names"]
    checked = 0
    for adapter in adapters(name):
        for line, used, call in adapter.calls:
            if isinstance(known.get(used), list):
                checked += 1
                try:
                    bind(known[used], call)
                except TypeError as error:
                    pytest.fail(f"{line}: {ast.unparse(call)}: {error}; it has {known[used]}")
    assert checked >= 4


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        ("f(1, 2)", True),
        ("f(1, size=2)", True),
        ("f(1, *more)", True),
        ("f(1, **more)", True),
        ("f()", False),
        ("f(1, 2, 3)", False),
        ("f(1, width=2)", False),
    ],
)
def test_a_call_that_does_not_fit_is_noticed(call, fits):
    node = ast.parse(call, mode="eval").body
    if fits:
        bind(["x", "size=3", "*", "bias=False"], node)
        return
    with pytest.raises(TypeError):
        bind(["x", "size=3", "*", "bias=False"], node)


def test_signatures_are_read_from_a_source(tmp_path):
    package = tmp_path / "engine"
    (package / "nn").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import nn\nfrom .core import *\nversion = '1'\n")
    (package / "nn" / "__init__.py").write_text("from .conv import Conv\n")
    (package / "nn" / "conv.py").write_text(
        "from ..core import Base\nclass Conv(Base):\n    def forward(self, x, *, plan=None): ...\n"
    )
    (package / "core.py").write_text(
        "class Base:\n"
        "    def __init__(self, width, bias: bool = True, **rest): self.width = width\n"
        "    @property\n    def rows(self): ...\n    @staticmethod\n    def make(a, b=f()): ...\n"
    )
    source = engine_calls.Source(tmp_path)
    assert source.look_up("engine.nn.Conv") == ["width", "bias=True", "**rest"]
    assert source.look_up("engine.nn.Conv.forward") == ["x", "*", "plan=None"]
    assert source.look_up("engine.Base.make") == ["a", "b=..."]
    assert source.look_up("engine.Base.rows") is None
    assert source.look_up("engine.Base.width") is None
    assert source.look_up("engine.version") is None
    with pytest.raises(LookupError, match=r"engine.core.Base has no other"):
        source.look_up("engine.Base.other")
    with pytest.raises(LookupError, match="engine has no Absent"):
        source.look_up("engine.Absent")
