"""Environments of engines under the user's cache: one interpreter per engine and version.

``NAME@VERSION`` names an installed engine. ``harness.engines.install`` makes the environments; this
module finds them. It needs the standard library alone, because every worker imports it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

FACTS = "engine.json"
"""Written last: a folder without it is not an environment."""


@dataclass(frozen=True)
class Environment:
    """An installed engine.

    Attributes
    ----------
    engine, version : str
        Its name and its version.
    imports : str
        The module of its package.
    torch : str
        The version of torch in the environment.
    proof : str
        Result of the agreement test at its installation.
    utc : str
        When it was installed.
    """

    engine: str
    version: str
    imports: str
    torch: str
    proof: str
    utc: str

    @property
    def name(self) -> str:
        """The name as in ``--backend``."""
        return f"{self.engine}@{self.version}"

    @property
    def path(self) -> Path:
        """The folder."""
        return folder() / self.name

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.path / "bin" / "python"

    def register(self) -> None:
        """Write the facts, which makes the folder an environment."""
        unfinished = self.path / f".{FACTS}"
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.replace(self.path / FACTS)


def folder() -> Path:
    """Return the folder of all environments.

    ``SSCN_BENCH_ENGINES`` names it, which a container image or a shared file system needs;
    otherwise it is ``sscn-bench/engines`` in the user's cache.
    """
    named = os.environ.get("SSCN_BENCH_ENGINES")
    return Path(named) if named else _cache() / "engines"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sscn-bench"


def code(root: Path) -> Path:
    """Return a folder that holds the packages of this project and no others.

    A clone is such a folder. Of an installation, whose folder has torch and everything else as
    well, the packages are linked: an environment must import its own torch.

    Parameters
    ----------
    root : Path
        The folder with the package ``backends``.
    """
    if root.name not in ("site-packages", "dist-packages"):
        return root
    linked = _cache() / "code" / hashlib.sha256(str(root).encode()).hexdigest()[:12]
    for name in ("backends", "harness", "suites"):
        linked.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (linked / name).symlink_to(root / name)
    return linked


def installed() -> dict[str, Environment]:
    """Return the environments by name, the newest last; what is damaged is left out."""
    found = []
    for path in folder().glob(f"*@*/{FACTS}"):
        try:
            environment = Environment(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if environment.name == path.parent.name:
            found.append(environment)
    return {each.name: each for each in sorted(found, key=lambda each: each.utc)}


def base(name: str) -> str:
    """Return the engine of ``NAME`` or ``NAME@VERSION``."""
    return name.partition("@")[0]


def find(name: str) -> Environment | None:
    """Return the environment of an engine; None if it runs in this interpreter, or nowhere.

    ``NAME`` without a version means the package of this interpreter. If there is none, it means
    the environment that was installed last.
    """
    if "@" in name:
        return installed().get(name)
    own = [each for each in installed().values() if each.engine == name]
    if not own or _importable(own[-1].imports):
        return None
    return own[-1]


@functools.cache
def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def remove(path: Path) -> None:
    """Remove an environment, or what is left of one; its facts first."""
    (path / FACTS).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
