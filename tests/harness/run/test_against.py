import re
import subprocess
import sys
from pathlib import Path

import pytest

from backends.environments import Environment
from harness.errors import BadInput
from harness.instruments import machine
from harness.results.store import records
from harness.run import against
from harness.run.against import checked_out, environment_engines, environment_source
from harness.run.source import EngineSource
from harness.run.worker_process import LocalWorker


def git(repository, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(repository), *identity, *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository whose package ``backends`` says which commit it is of."""
    root = tmp_path / "repository"
    (root / "backends").mkdir(parents=True)
    git(tmp_path, "init", "-q", str(root))
    for word in ("old", "new"):
        (root / "backends" / "__init__.py").write_text(f"WORD = {word!r}\n")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", word)
    return root


@pytest.fixture
def copied(monkeypatch):
    """Copy instead of compiling."""

    def build(tree, built, commit):
        (tree / "backends").rename(built)
        (built.parent / "keep").mkdir()
        built.rename(built.parent / "keep" / "backends")
        (built.parent / "keep").rename(built)

    monkeypatch.setattr(against, "_build", build)


def test_the_other_commits_code_is_there_for_the_time_of_the_run(repository, copied):
    with checked_out("HEAD~1", repository) as code:
        assert code.commit == git(repository, "rev-parse", "HEAD~1")
        assert "old" in (code.root / "backends" / "__init__.py").read_text()
    assert not code.root.exists()
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "status", "--porcelain") == ""


def test_what_is_no_commit_is_one_sentence(repository):
    refusal = pytest.raises(BadInput, match="'nothing' is no commit")
    with refusal, checked_out("nothing", repository):
        pass


def test_a_commit_that_does_not_build_is_one_sentence(repository):
    with pytest.raises(BadInput, match="cannot be built here"), checked_out("HEAD", repository):
        pass
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_worker_takes_its_engines_from_the_code_it_is_given(tmp_path):
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").write_text(
        'import os, sys\nos.write(int(sys.argv[2]), b\'{"word": "other"}\\n\')\n'
    )
    command = EngineSource(tmp_path, "", True).command(sys.executable)
    worker = LocalWorker(
        [*command[:-1], command[-1].replace("runpy.run", "import backends; runpy.run")]
    )
    try:
        assert worker.request({}, 60) == {"word": "other"}
    finally:
        worker.close()


def test_an_installed_environment_is_named_and_has_one_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Environment("ocnn", "9.9", "ocnn", "2.13", "", "")
    made.python.parent.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    made.register()
    source, engine = environment_source("ocnn@9.9")
    assert (source.python, source.label, engine) == (str(made.python), "in ocnn@9.9", "ocnn")
    with pytest.raises(BadInput, match=r"'ocnn@1' is neither .* environment \(ocnn@9.9\) nor an "):
        environment_source("ocnn@1")


def test_the_path_of_an_interpreter_is_an_environment():
    source, engine = environment_source(sys.executable)
    assert (source.python, engine) == (sys.executable, "")
    assert environment_engines(source, ["dense"], ["dense"])["dense"].capabilities


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "the probe ended without an answer (exit code 3)"),
        (f'exec {sys.executable} -S "$@"', "not installed: No module named"),  # lacks torch
    ],
)
def test_an_interpreter_without_the_engine_is_one_sentence(script, reason, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    source, _ = environment_source(str(python))
    with pytest.raises(BadInput, match=re.escape(f"dense cannot run in {python}: {reason}")):
        environment_engines(source, ["dense"], ["dense"])


@pytest.mark.slow
def test_a_real_commit_is_built_and_measured():
    with checked_out("HEAD") as code:
        assert (code.root / "backends").is_dir()
        assert not (code.root / "harness").exists()
        assert list((code.root / "backends" / "sscn" / "cpu").glob("_kernels*"))
    assert Path(machine.ROOT, "backends").is_dir()


@pytest.mark.slow
def test_a_run_against_an_environment_ends_with_verdicts(tmp_path):
    words = ["run", "inference", "--backend", "sscn", "--size", "192", "--batch", "1"]
    words += ["--budget", "0.1", "--out", str(tmp_path / "run.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words, "--against-env", sys.executable],
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"trained in {sys.executable}: " in done.stdout
    assert re.search(r"\d (SAME|UNCLEAR|SLOWER|FASTER)", done.stdout.splitlines()[-1])
    before, after = (records([tmp_path / name]) for name in ("run.against.jsonl", "run.jsonl"))
    assert {record["environment"] for record in before} == {sys.executable}
    assert not any("environment" in record for record in after)


def test_an_installation_says_that_it_needs_a_clone(monkeypatch):
    monkeypatch.setattr(against, "in_clone", lambda: False)
    sentence = r"--against needs a clone of sscn-bench with the commit 'main'.* compare A.jsonl"
    with pytest.raises(BadInput, match=sentence), against.checked_out("main"):
        pass
