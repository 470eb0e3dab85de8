"""The engines of another commit, built in a temporary folder and measured in turns with these.

The running harness measures both; only the package ``backends`` differs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.child_process import die_with_parent
from harness.errors import BadInput, in_clone
from harness.instruments import machine
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
