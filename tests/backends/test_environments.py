"""Installed engines are found by name and version, and run in their own interpreter."""

import sys

import pytest

from backends import environments, registry
from backends.environments import Environment


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Register an environment whose interpreter is this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environments._importable.cache_clear()

    def make(engine, version, imports="not_there", utc="2026-01-01"):
        found = Environment(engine, version, imports, "2.13.0", "3 of 3", utc)
        found.python.parent.mkdir(parents=True)
        found.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        found.python.chmod(0o755)
        found.register()
        return found

    return make


def test_two_versions_of_an_engine_stand_side_by_side(put):
    old, new = put("spconv", "2.3.6", utc="2026-02"), put("spconv", "2.3.8", utc="2026-01")
    assert list(environments.installed()) == ["spconv@2.3.8", "spconv@2.3.6"]
    assert registry.names()[-2:] == ["spconv@2.3.8", "spconv@2.3.6"]
    for each in (old, new):
        assert registry.module_name(each.name) == registry.BUILT_IN["spconv"]
        assert registry.interpreter(each.name) == str(each.python)


def test_a_name_without_a_version_means_the_package_of_this_interpreter(put):
    put("minkowski", "0.5.4", imports="json")
    assert registry.interpreter("minkowski") == sys.executable
    put("ocnn", "1", utc="2026-01")
    last = put("ocnn", "2", utc="2026-02")
    assert registry.interpreter("ocnn") == str(last.python)
    assert registry.interpreter("sscn") == sys.executable


def test_a_variable_has_precedence(put, monkeypatch):
    put("spconv", "2.3.6")
    monkeypatch.setenv("SSCN_BENCH_PYTHON_SPCONV_2_3_6", "/other/python")
    assert registry.interpreter("spconv@2.3.6") == "/other/python"


def test_an_installed_engine_is_probed_in_its_environment(put):
    put("dense", "1.0")
    found = registry.probe("dense@1.0")
    assert found.capabilities is not None
    assert found.name == "dense@1.0"


def test_unfinished_and_damaged_environments_are_not_engines(put, tmp_path):
    put("spconv", "1").path.joinpath(environments.FACTS).unlink()
    put("spconv", "2").path.joinpath(environments.FACTS).write_text("{")
    whole = put("spconv", "3")
    whole.path.rename(whole.path.with_name("spconv@4"))
    assert environments.installed() == {}
    with pytest.raises(registry.UnknownBackend, match="no engine called 'spconv@1'"):
        registry.module_name("spconv@1")


def test_a_removed_environment_is_gone(put):
    found = put("spconv", "2.3.6")
    environments.remove(found.path)
    assert not found.path.exists()
    assert environments.installed() == {}


def test_an_installation_shares_no_package_but_its_own(put, tmp_path):
    site = tmp_path / "site-packages"
    for name in ("backends", "harness", "suites", "torch"):
        (site / name).mkdir(parents=True)
    for _ in range(2):
        linked = environments.code(site)
        assert {path.name for path in linked.iterdir()} == {"backends", "harness", "suites"}
        assert (linked / "harness").resolve() == site / "harness"
    assert environments.code(tmp_path) == tmp_path
