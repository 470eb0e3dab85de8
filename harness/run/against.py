"""Other engines, measured in turns with these: those of another commit or another environment.

The running harness measures both. Of another commit the package ``backends`` differs, which is
built in a temporary folder; of another environment the interpreter with its packages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.child_process import die_with_parent
from harness.errors import BadInput, in_clone
from harness.instruments import machine
from harness.run.plan import Availability
from harness.run.source import EngineSource
from harness.temporary import run_folder
from harness.terminal import program


@contextlib.contextmanager
def checked_out(commit: str, repository: Path = machine.ROOT) -> Iterator[EngineSource]:
    """Check out a commit into a temporary folder, and build its engines there.

    Parameters
    ----------
    commit : str
        A revision of git.
    repository : Path
        The repository.

    Yields
    ------
    EngineSource
        Valid while the context is open.

    Raises
    ------
    BadInput
        If there is no such commit, or its package cannot be built.
    """
    if repository == machine.ROOT and not in_clone():
        raise BadInput(
            f"--against needs a clone of sscn-bench with the commit {commit!r}, and this is an "
            "installation; run it in a clone, or compare two runs: "
            f"{program()} compare A.jsonl B.jsonl"
        )
    try:
        full = machine.git(
            repository, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        raise BadInput(f"{commit!r} is no commit of {repository}; see: git log") from None
    with run_folder() as folder:
        machine.git(repository, "worktree", "prune")  # of the folders of dead runs
        tree, built = folder / "tree", folder / "built"
        machine.git(repository, "worktree", "add", "--detach", "--quiet", str(tree), full)
        try:
            _build(tree, built, full)
            yield EngineSource(built, full, dirty=False)
        finally:
            machine.git(repository, "worktree", "remove", "--force", str(tree))


def environment_source(text: str) -> tuple[EngineSource, str]:
    """Return these engines in the environment that a user names, and the only engine there.

    Parameters
    ----------
    text : str
        An installed engine ``NAME@VERSION``, or the path of an interpreter.

    Returns
    -------
    source : EngineSource
        The present commit with that interpreter.
    engine : str
        The engine of an installed environment; empty for any other interpreter.

    Raises
    ------
    BadInput
        If there is no such environment or interpreter.
    """
    from backends import environments

    installed = environments.installed()
    if text in installed:
        python, engine = installed[text].python, installed[text].engine
    else:  # not resolved: the place of a link decides which packages it finds
        python, engine = Path(text).expanduser().absolute(), ""
    if python.is_file() and os.access(python, os.X_OK):
        return replace(EngineSource.here(), python=str(python), environment=text), engine
    listed = ", ".join(installed) or "none"
    raise BadInput(
        f"{text!r} is neither an installed environment ({listed}) nor an interpreter; install one "
        f"with: {program()} engines install NAME==VERSION"
    )


def environment_engines(
    source: EngineSource, engines: Sequence[str], needed: Sequence[str]
) -> dict[str, Availability]:
    """Find out what engines can do in an environment.

    Parameters
    ----------
    source : EngineSource
        As ``environment_source`` returns it.
    engines : sequence of str
        Their names.
    needed : sequence of str
        Those that must be able to run.

    Raises
    ------
    BadInput
        If one of these, or all engines, cannot run there.
    """
    from backends.registry import probe_all

    found = {each.name: each for each in probe_all(dict.fromkeys(engines), python=source.python)}
    absent = [found[name] for name in engines if found[name].capabilities is None]
    for each in absent:
        if each.name in needed or len(absent) == len(engines):
            raise BadInput(f"{each.name} cannot run in {source.environment}: {each.reason}")
    return dict(found)


def _build(tree: Path, built: Path, commit: str) -> None:
    """Install the package ``backends`` of a tree, with its compiled kernels, into a folder."""
    tools = ("scikit_build_core", "nanobind")
    present = all(importlib.util.find_spec(tool) is not None for tool in tools)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(built)]
    command += ["--no-build-isolation"] if present else []
    done = subprocess.run(
        [*command, str(tree)], capture_output=True, text=True, preexec_fn=die_with_parent
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInput(f"the commit {commit[:12]} cannot be built here: {last}")
    for name in ("harness", "suites"):
        (built / name).rename(built / f"not-{name}")  # the running harness measures both
