"""An engine of a third party, made from the template of the documentation."""

import importlib.util
import sys
from pathlib import Path

import pytest

from backends import registry

TEMPLATE = Path(__file__).resolve().parents[3] / "docs" / "engine_template.py"


@pytest.fixture
def install(monkeypatch):
    """Announce an engine made from the template; return the module, to be changed."""

    def announce(name):
        spec = importlib.util.spec_from_file_location(name, TEMPLATE)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(registry, "_modules", lambda: {name: name} | registry.BUILT_IN)
        return module

    return announce
