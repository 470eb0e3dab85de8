"""Structure of the packages: their imports and dependencies, and code in docstrings."""

import ast
import graphlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ORDER = (
    "errors",
    "files",
    "terminal",
    "options",
    "examples",
    "child_process",
    "temporary",
    "spec",
    "instruments",
    "events",
    "accuracy",
    "results",
    "report",
    "engines",
    "run",
    "predict",
    "profile",
    "compare",
    "submissions",
    "site",
    "history",
    "study",
    "asv",
    "interface",
    "__main__",
)
"""The packages and modules of ``harness``; each imports from itself and from those before it."""


def modules(package):
    """Map the dotted name of every module of a package to its file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, names, *, lazy=True):
    """Yield the project's modules that a file imports at run time, optionally in functions too."""
    tree = ast.parse(path.read_text())
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield node.module
        pending += ast.iter_child_nodes(node)


def package_of(name):
    """Return the part of the harness that a module belongs to; empty for the harness itself."""
    _, _, rest = name.partition(".")
    return rest.partition(".")[0]


def test_every_package_of_the_harness_has_a_place_in_the_order():
    present = {path.stem for path in (ROOT / "harness").iterdir() if path.suffix == ".py"}
    present |= {path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")}
    assert present - {"__init__"} <= set(ORDER)


def test_the_readme_lists_every_folder():
    readme = (ROOT / "README.md").read_text()
    folders = ["backends", "suites", "benchmarks", "results", "tests", "docs"]
    folders += [f"harness/{path.parent.name}" for path in (ROOT / "harness").glob("*/__init__.py")]
    assert [folder for folder in folders if f"`{folder}/`" not in readme] == []


def test_packages_of_the_harness_import_from_earlier_ones_only():
    files = modules("harness")
    crossed = []
    for name, path in files.items():
        own = package_of(name)
        for target in imports(path, files):
            if own and ORDER.index(package_of(target)) > ORDER.index(own):
                crossed.append(f"{name} imports {target}")
    assert not crossed


@pytest.mark.parametrize("package", ["backends", "harness", "suites"])
def test_no_modules_import_each_other_in_a_circle(package):
    files = modules(package)
    graph = {name: set(imports(path, files)) - {name} for name, path in files.items()}
    for name, path in files.items():  # importing any module of a package imports its __init__
        if path.name == "__init__.py":
            graph[name] = {target for target in graph[name] if not target.startswith(f"{name}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


OWN = {"backends", "harness", "suites", "benchmarks", "tests"}

DISTRIBUTIONS = {"pynvml": "nvidia-ml-py", "yaml": "PyYAML"}
"""The name of a distribution whose package has another name."""

ENGINES = {
    *(
        "flex_gemm",
        "fvdb",
        "ocnn",
        "sparseconvnet",
        "spira",
        "torch_lattice",
        "torchsparse",
        "warpconvnet",
    )
}
"""Engines that ``pip`` cannot install as a dependency; docs/install-engines.md says how."""


def third_party(package):
    """Return the top-level packages of others that a package imports."""
    names = set()
    for path in modules(package).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OWN


@pytest.mark.parametrize("package", ["backends", "harness", "suites", "tests"])
def test_every_imported_package_is_declared(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[^\w.-]", entry)[0].lower() for entries in lists for entry in entries}
    declared = {name.replace("-", "_") for name in declared}
    imported = third_party(package) - ENGINES
    imported = {DISTRIBUTIONS.get(name, name).lower().replace("-", "_") for name in imported}
    assert imported <= declared


@pytest.mark.parametrize("package", ["backends", "harness", "suites"])
def test_code_in_docstrings_has_double_backticks(package):
    single = []
    for name, path in modules(package).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = re.sub(r"``.*?``", "", str(node.value.value), flags=re.DOTALL)
                single += [f"{name}:{node.lineno}"] * ("`" in text)
    assert not single
