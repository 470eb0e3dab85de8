"""An asv environment with each commit's engines and the packages of this environment.

asv's own environments install every dependency anew; with torch and half a dozen engines that is
gigabytes and many minutes. Here each environment is an empty virtual environment whose path file
points at the packages of the interpreter that runs asv; only the commit's own wheel is installed.
Of that wheel the package ``backends`` stays. The harness and the suites are those that run asv, so
that a history shows the engines of all commits, measured in the same way.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from asv import environment
from asv.util import UserError

from harness.instruments.machine import ROOT


class SharedEnvironment(environment.Environment):  # type: ignore[misc, unused-ignore]  # asv has no types
    """A virtual environment with access to the packages of the one that runs asv."""

    tool_name = "shared-venv"

    def __init__(self, conf: Any, python: str, requirements: Any, tagged_env_vars: Any) -> None:
        self._python = python  # the base class derives its folder from these two
        self._requirements = requirements
        super().__init__(conf, python, requirements, tagged_env_vars)

    @classmethod
    def matches(cls, python: str) -> bool:
        """Return whether asv may use this environment: only for the running version of Python."""
        return python in (
            platform.python_version(),
            "{}.{}".format(*platform.python_version_tuple()),
        )

    def check_presence(self) -> bool:
        """Return whether the environment exists and uses the packages of this interpreter."""
        path_file = borrowed_file(Path(self._path))
        return path_file.exists() and path_file.read_text() == borrowed_paths()

    def _setup(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self._path], check=True)
        borrowed_file(Path(self._path)).write_text(borrowed_paths())

    def _install_project(self, repo: Any, commit_hash: str, build_dir: str) -> None:
        super()._install_project(repo, commit_hash, build_dir)
        for name in ("harness", "suites"):
            shutil.rmtree(packages(Path(self._path)) / name, ignore_errors=True)
        if not (packages(Path(self._path)) / "backends" / "__init__.py").exists():
            raise UserError(f"the wheel of commit {commit_hash[:12]} has no package backends")

    def run(self, args: list[str], **kwargs: Any) -> Any:
        """Run Python of the environment."""
        return self.run_executable("python", args, **kwargs)


def packages(environment_folder: Path) -> Path:
    """Return the folder of an environment's packages."""
    scheme = {"base": str(environment_folder), "platbase": str(environment_folder)}
    return Path(sysconfig.get_path("purelib", "venv", scheme))


def borrowed_file(environment_folder: Path) -> Path:
    """Return the path file of an environment."""
    return packages(environment_folder) / "borrowed.pth"


def borrowed_paths() -> str:
    """Return the lines of the path file: this interpreter's packages, then this harness.

    The environment's own packages come before them, so ``backends`` is the commit's. Path files
    inside the folders are not followed, so that an editable installation of this project is not
    found.
    """
    folders = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return "".join(f"{folder}\n" for folder in dict.fromkeys([*folders, str(ROOT)]))
