"""Imports point one way, and an engine's package is imported in its own adapter alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from backends import registry

ROOT = Path(__file__).resolve().parents[2]

OWNERS = {
    "spconv": "spconv.py",
    "cumm": "spconv.py",
    "MinkowskiEngine": "minkowski.py",
    "sparseconvnet": "sparseconvnet.py",
    "torchsparse": "torchsparse.py",
    "ocnn": "ocnn.py",
    "spconv_triton": "spconv_triton.py",
    "warpconvnet": "warpconvnet.py",
    "fvdb": "fvdb.py",
    "torch_lattice": "torch_lattice.py",
    "flex_gemm": "flex_gemm.py",
    "spira": "spira.py",
}

FORBIDDEN = {"backends": ("harness", "suites"), "harness": ("suites",), "suites": ()}


def imported(path):
    """Yield the top-level names of the modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        crossed = set(imported(path)) & set(FORBIDDEN[package])
        assert not crossed, f"{path.relative_to(ROOT)} imports {crossed}"


def test_an_engine_is_imported_by_its_adapter_only():
    seen = set()
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            for engine in set(imported(path)) & set(OWNERS):
                assert path == ROOT / "backends" / OWNERS[engine], f"{path} imports {engine}"
                seen.add(engine)
    assert seen == {engine for engine in OWNERS if engine != "cumm"}


def test_adapters_have_the_same_names_inside():
    for module in registry.BUILT_IN.values():
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        names = {
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert {"probe", "Backend"} <= names, module


def test_the_registry_is_light():
    heavy = ("torch", "numpy", *OWNERS)
    code = (
        "import sys, backends.registry as r; r.names(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.strip() == "[]"
