"""Installation of an engine in an environment of its own, and its removal."""

from __future__ import annotations

import contextlib
import ctypes.util
import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from backends import environments, registry
from backends.environments import Environment
from harness.child_process import die_with_parent, end_session, start_session
from harness.engines.recipe import Recipe
from harness.errors import BadInput, MachineFailure
from harness.instruments.machine import ROOT

Say = Callable[[str], None]

WORKER_NEEDS = ("numpy", "scipy")
"""Packages of a worker; it starts without SciPy, which the accuracy of Michel electrons needs."""

LOCK_FILE = "requirements.lock"
"""All packages of an environment with their versions, as ``pip freeze`` writes them."""


SOURCE, SCRATCH = "src", "tmp"
"""Folders of an environment while it is made: the engine's source, and temporary files of pip."""


def install(recipe: Recipe, source: Path | None, say: Say) -> Environment:
    """Make an environment with an engine, prove the engine in it, and register it.

    Parameters
    ----------
    recipe : Recipe
        The engine.
    source : Path or None
        A folder with the engine's source, in place of its repository.
    say : callable
        Receives a line per step.

    Returns
    -------
    Environment
        Registered: ``NAME@VERSION`` finds it, and ``NAME`` if this interpreter lacks the package.

    Raises
    ------
    BadInput
        If the engine cannot be installed here. Nothing but the log is left.
    """
    _refuse(recipe, source)
    folder = environments.folder()
    logs = folder / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineFailure(f"cannot write to {folder}: {error.strerror}") from None
    log = logs / f"{recipe.engine}@{recipe.version or 'newest'}.log"
    path = folder / f"{recipe.engine}@{recipe.version or 'newest'}"
    with _alone(folder, recipe.engine):
        log.write_text("")
        if (path / environments.FACTS).exists():
            raise BadInput(f"{path.name} is installed already; remove it first")
        environments.remove(path)  # what a killed installation has left
        step = _Steps(path, log, say)
        try:
            return _install(recipe, source, path, step)
        except BaseException:
            environments.remove(path)
            raise


def _install(recipe: Recipe, source: Path | None, path: Path, step: _Steps) -> Environment:
    step.run("makes an environment", [sys.executable, "-m", "venv", str(path)])
    wanted: list[str] = list(recipe.requires)  # found before torch, which takes a minute
    if recipe.source:
        wanted = [str(_checked_out(recipe, source, path / SOURCE, step))]
    elif source is not None:
        wanted = [str(source)]
    else:
        _find_versions(recipe, step)
    torch = f"torch=={_torch_version(recipe.torch)}"
    # The versions of here, so that engines differ in their package alone.
    needs = [f"{name}=={importlib.metadata.version(name)}" for name in WORKER_NEEDS]
    step.pip(f"installs {torch}", ["install", torch, *(WORKER_NEEDS if recipe.torch else needs)])
    build = recipe.build
    if build:
        step.pip("installs what the build needs", ["install", *build["requires"]])
    options = [*recipe.options, *build.get("options", ())]
    if build:  # a wheel that pip has kept may be compiled with another torch
        options += ["--no-build-isolation", "--no-cache-dir"]
        options += [f"--no-binary={need.partition('==')[0]}" for need in recipe.requires]
    minutes = f" (about {build['minutes']} minutes)" if build else ""
    what = f"{'compiles' if build else 'installs'} {recipe.engine} {recipe.version}".rstrip()
    search = f"{path / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    chosen = {k: os.environ.get(k) or v for k, v in build.get("environment", {}).items()}
    variables = {"PATH": search, **chosen}
    step.pip(f"{what}{minutes}", ["install", *options, *wanted], variables)
    shutil.rmtree(path / SOURCE, ignore_errors=True)
    python = str(path / "bin" / "python")
    frozen = step.pip("", ["freeze"])
    shutil.rmtree(path / SCRATCH, ignore_errors=True)
    (path / LOCK_FILE).write_text(frozen)
    proof = _proof(recipe, python, step)
    installed = re.search(r"^torch==(\S+)$", frozen, re.MULTILINE)
    environment = Environment(
        engine=recipe.engine,
        version=path.name.partition("@")[2],
        imports=recipe.imports,
        torch=installed[1] if installed else "",
        proof=proof,
        utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
    )
    environment.register()
    return environment


def _find_versions(recipe: Recipe, step: _Steps) -> None:
    """Raise ``BadInput`` if the package index lacks a version that the recipe requires."""
    for need in recipe.requires:
        name, _, version = need.partition("==")
        listed = step.pip(f"looks for {need}", ["index", "versions", "--pre", name])
        found = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)
        offered = found[1].split(", ") if found else []
        if version and version not in offered:
            raise BadInput(
                f"there is no {name} {version} for Python {sys.version_info[0]}."
                f"{sys.version_info[1]} on the package index; it has {', '.join(offered) or 'none'}"
            )


def _proof(recipe: Recipe, python: str, step: _Steps) -> str:
    """Run the agreement test in the environment, and return its last line."""
    code = {"PYTHONPATH": str(environments.code(ROOT))}
    if "cpu" in recipe.devices:
        # The adapter, because some engines cannot be imported without its preparations.
        adapter = f"import {registry.module_name(recipe.engine)}"
        step.run(f"imports {recipe.imports}", [python, "-P", "-c", adapter], code)
        command = [python, "-P", "-m", "backends.proof", recipe.engine]
        return step.run("compares it with float64", command, code).strip().splitlines()[-1]
    return "not proved: it needs a GPU"


class _Steps:
    """Runs the commands of an installation, with a line each and their output in a log."""

    def __init__(self, path: Path, log: Path, say: Say) -> None:
        self._path, self._log, self._say = path, log, say

    def run(
        self, title: str, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> str:
        """Run a command and return its output; a failure is one sentence."""
        if title:
            self._say(title)
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            child = start_session(
                command,
                env=kept | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
            try:
                code = child.wait()
            except BaseException:
                end_session(child)  # with the compilers that it has started
                raise
        with self._log.open("rb") as log:
            log.seek(start)
            text = log.read().decode(errors="replace")
        if code:
            raise BadInput(f"{self._path.name} was not installed: {cause(text)}; log: {self._log}")
        return text

    def pip(
        self, title: str, words: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> str:
        """Run a command of the environment's pip and return its output."""
        pip = [str(self._path / "bin" / "python"), "-m", "pip", "--no-input"]
        scratch = self._path / SCRATCH  # of builds, and removed with the environment
        scratch.mkdir(exist_ok=True)
        kept = {"TMPDIR": str(scratch), **(variables or {})}
        return self.run(title, [*pip, "--disable-pip-version-check", *words], kept)


PIP_SAYS = "error: subprocess-exited-with-error"
"""A line of pip before the output of a build that has failed."""


def cause(text: str) -> str:
    """Return the line of a failed command's output that says why, in a few words."""
    lines = [line.strip() for line in text.splitlines() if line.strip() not in ("", PIP_SAYS)]
    unreachable = r"NewConnectionError|Temporary failure in name|Could not resolve host"
    if any(re.search(unreachable, line) for line in lines):
        return "there is no network"
    first = (r"^WRONG", r"^(ERROR: )?No matching", r"\berror: ", r"^\w*Error: ")
    for pattern in (*first, r"^ERROR", r"Error\b"):
        found = next((line for line in lines if re.search(pattern, line)), None)
        if found:
            return re.sub(r"^ERROR: ", "", found)[:200]
    return lines[-1][:200] if lines else "no output"


def _refuse(recipe: Recipe, source: Path | None) -> None:
    """Refuse what cannot work before anything is written."""
    here = sys.version_info[:2]
    first, last = map(_number, recipe.python)
    if not first <= here <= last:
        span = recipe.python[0] if first == last else " to ".join(recipe.python)
        raise BadInput(
            f"{recipe.engine} {recipe.version} needs Python {span}, and this is "
            f"{here[0]}.{here[1]}; start with another Python"
        )
    torch, newest = _torch_version(recipe.torch), recipe.build.get("torch")
    if newest and _number(torch) > _number(newest):
        raise BadInput(
            f"{recipe.engine} {recipe.version} compiles with torch up to {newest}, not with "
            f"{torch.removesuffix('.*')}; give --torch {newest}"
        )
    if source is not None and not source.is_dir():
        raise BadInput(f"there is no folder {source}; give the engine's source with --source")
    for program in recipe.build.get("programs", ()):
        if program == "git" and source is not None:
            continue
        program = os.environ.get("CXX", program) if program == "c++" else program
        if shutil.which(program) is None:
            raise BadInput(f"{recipe.engine} is compiled and needs {program}, which is not here")
    if recipe.build.get("nvcc"):
        _refuse_nvcc(recipe)
    for library in recipe.build.get("libraries", ()):
        if ctypes.util.find_library(library) is None:
            raise BadInput(f"{recipe.engine} needs the library {library}: install lib{library}-dev")
    for header, package in recipe.build.get("headers", {}).items():
        compiler = [os.environ.get("CXX", "c++"), "-x", "c++", "-E", "-"]
        include = f"#include <{header}>\n".encode()
        if subprocess.run(compiler, input=include, capture_output=True).returncode:
            raise BadInput(f"{recipe.engine} needs the header {header}: install {package}")


def _refuse_nvcc(recipe: Recipe) -> None:
    """Refuse a compiler of CUDA that the recipe excludes."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    first, last = recipe.build["nvcc"]
    here = found[1] if found else ""
    if not _number(first) <= _number(here) <= _number(last):
        raise BadInput(
            f"{recipe.engine} {recipe.version} compiles with CUDA {first} to {last}, and the nvcc "
            f"here is {here or 'of no known version'}; put another one in PATH"
        )


def _number(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _torch_version(wanted: str) -> str:
    """Return a version for pip: the wanted one, ``2.9`` meaning any 2.9.x, or that of here."""
    if wanted:
        return wanted if wanted.count(".") > 1 else f"{wanted}.*"
    return importlib.metadata.version("torch").partition("+")[0]


def _checked_out(recipe: Recipe, source: Path | None, target: Path, step: _Steps) -> Path:
    """Return the engine's source: a copy of the given folder, or its repository's commit."""
    if source is not None:
        shutil.copytree(source, target, symlinks=True)
    else:
        repository, commit = recipe.source["repository"], recipe.source["commit"]
        step.run(f"clones {repository}", ["git", "clone", "--recursive", repository, str(target)])
        step.run("", ["git", "-C", str(target), "checkout", "--quiet", commit])
    for edit in recipe.build.get("edits", ()):
        edited = target / edit["file"]
        text = edited.read_text(encoding="utf-8") if edited.is_file() else ""
        if edit["old"] not in text:
            raise BadInput(
                f"the recipe of {recipe.engine} changes {edit['old']!r} in {edit['file']}, which "
                f"this source lacks; give that of commit {recipe.source['commit'][:12]}"
            )
        edited.write_text(text.replace(edit["old"], edit["new"]), encoding="utf-8")
    return target / str(recipe.source.get("folder", ""))


@contextlib.contextmanager
def _alone(folder: Path, engine: str) -> Iterator[None]:
    """Hold the lock of an engine's installations."""
    with (folder / f".{engine}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another installation of {engine} is going on; wait for it") from None
        yield


def remove(name: str) -> None:
    """Remove an installed engine.

    Raises
    ------
    BadInput
        If it is not installed.
    """
    found = environments.installed()
    if name not in found:
        listed = ", ".join(found) or "none"
        raise BadInput(f"{name!r} is not installed by this command; installed: {listed}")
    environments.remove(found[name].path)
