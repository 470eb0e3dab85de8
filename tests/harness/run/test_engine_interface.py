import ast
import importlib
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from backends.registry import probe
from harness.instruments import machine
from harness.results import store
from harness.run import engine_interface
from harness.run.against import checked_out
from harness.run.plan import with_events
from harness.run.rounds import Settings, run
from harness.run.sampling import StopRule
from harness.spec.cell import Cell, ModelSpec

OLDEST = "ed412c590c8b2e5dbffbbd2b0e2f82814e9bf46b"
ROOT = Path(__file__).resolve().parents[3]
ENTRIES = (
    *("harness.run.worker", "harness.run.references", "harness.profile.child"),
    "harness.asv.track",
)
"""The modules that run with the engines of another commit."""

BY_THE_SUITES = {"backends.registry.BUILT_IN"}
"""Imported by ``harness.spec.suite``, which is below the interface, and unchanged since ed412c5."""


def path_of(module):
    """Return the file of one of the project's modules; None of anything else."""
    place = ROOT / module.replace(".", "/")
    found = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in found if path.exists()), None)


def imported(module):
    """Yield the full names that a module imports, wherever it does; packages come first.

    The names that ``harness`` itself offers to notebooks are imported on use, never by a worker.
    """
    yield module.rpartition(".")[0]
    if module == "harness":
        return
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_modules_that_run_with_another_commit_import_engines_through_the_interface_alone():
    pending, seen = list(ENTRIES), set()
    while pending:
        module = pending.pop()
        if module in seen or not module.startswith("harness") or path_of(module) is None:
            continue
        seen.add(module)
        if module != engine_interface.__name__:
            pending += imported(module)
            direct = {name for name in imported(module) if name.startswith("backends.")}
            if module == "harness.spec.suite":
                direct -= BY_THE_SUITES | {"backends.registry"}
            if module == "harness.spec.cell":  # below the interface, and there since ed412c5
                direct -= {"backends.capabilities", "backends.capabilities.PRECISIONS"}
            if module == "harness.run.source":  # to start a worker in an environment of its own
                direct -= {"backends.environments", "backends.environments.code"}
            assert not direct, f"{module} imports {direct}"
    assert {*ENTRIES, "harness.run.workload", "harness.run.rounds", "harness.spec.cell"} <= seen


def test_every_name_is_where_the_type_checker_looks():
    assert set(engine_interface.__all__) == set(engine_interface.PLACES)
    for name, places in engine_interface.PLACES.items():
        module, _, attribute = places[0].partition(":")
        present = getattr(importlib.import_module(module), attribute)
        assert getattr(engine_interface, name) is present


def test_a_name_that_a_commit_lacks_is_an_import_error(monkeypatch):
    places = {"lost": ("backends.nowhere:lost", "backends.registry:lost")}
    monkeypatch.setattr(engine_interface, "PLACES", places)
    with pytest.raises(ImportError, match=r"have no backends\.nowhere:lost"):
        _ = engine_interface.lost
    with pytest.raises(AttributeError, match="no attribute 'misspelt'"):
        _ = engine_interface.misspelt


@pytest.fixture
def oldest_commit():
    """The oldest commit whose engines this harness measures, if the clone has it."""
    ran = subprocess.run(
        ["git", "-C", str(machine.ROOT), "cat-file", "-e", f"{OLDEST}^{{commit}}"],
        capture_output=True,
    )
    if ran.returncode:
        pytest.skip(f"{OLDEST} is not in this clone; fetch the whole history")
    return OLDEST


def test_every_name_is_in_the_oldest_commit(oldest_commit):
    def defines(place):
        module, _, attribute = place.partition(":")
        for path in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
            command = ["git", "-C", str(machine.ROOT), "show", f"{oldest_commit}:{path}"]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode == 0:
                return attribute in ran.stdout
        return False

    lost = [
        name for name, places in engine_interface.PLACES.items() if not any(map(defines, places))
    ]
    assert not lost


@pytest.mark.slow
@pytest.mark.timeout(1800)  # an old commit is compiled
def test_an_older_commit_is_measured_in_turns_with_this_one(tmp_path, oldest_commit):
    cells = [
        Cell("s", "sscn", 192, 1, "forward", "cold"),
        Cell("s", "sscn", 192, 1, "forward", "warm"),
        Cell("s", "sscn", 192, 1, "step", "cold"),
        Cell("s", "sscn", 192, 1, "submanifold", "cold", model=ModelSpec(depth=2)),
        Cell("s", "sscn", 192, 1, "weight-gradient", "warm", layer="inverse-1"),
    ]
    settings = Settings(tmp_path / "run.jsonl", rule=StopRule(budget=0.1))
    with checked_out(oldest_commit) as code:
        here, there = run(
            with_events(cells, "sample"),
            settings,
            {"sscn": probe("sscn")},
            Console(quiet=True),
            against=code,
        )
    for path in (here, there):
        records = list(store.records([path]))
        assert [record["outcome"] for record in records] == ["ok"] * len(cells), records
        assert all(record["error"] and record["host_seconds"] for record in records)
    assert {record["commit"] for record in store.records([there])} == {code.commit}
