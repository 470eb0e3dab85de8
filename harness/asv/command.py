"""``python -m harness asv …``: asv with this machine's facts and commit filled in."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from harness.errors import BadInput
from harness.instruments import gpu, machine

CONFIGURATION = Path("asv.conf.json")
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Everything that follows on the command line, ``--help`` included, is for asv."""


def asv(context: typer.Context) -> None:
    """Run asv: run, continuous, compare, publish, preview, show …

    Everything after ``asv`` is asv's own. Before it starts, the machine's processor, memory and GPU
    are written to asv's machine file; a run in an existing environment is labelled with the
    commit that is checked out, since asv would measure it and throw the result away.
    """
    if importlib.util.find_spec("asv") is None:
        raise BadInput("asv is not installed; pip install 'sscn-bench[asv]'")
    if not CONFIGURATION.exists():
        raise BadInput(f"there is no {CONFIGURATION} here; go to the root of the repository first")
    write_machine_file(gpu_name())
    arguments = with_commit(context.args, machine.commit(Path.cwd())[0])
    raise typer.Exit(subprocess.run([sys.executable, "-m", "asv", *arguments]).returncode)


def with_commit(arguments: Sequence[str], commit: str) -> list[str]:
    """Add ``--set-commit-hash`` to a run in an existing environment.

    Parameters
    ----------
    arguments : sequence of str
        asv's own arguments.
    commit : str
        The commit that is checked out.

    Returns
    -------
    list of str
        The same arguments, or with the commit after ``run``.
    """
    words = list(arguments)
    existing = any("existing" in word for word in words)
    labelled = any(word.startswith("--set-commit-hash") for word in words)
    if not words or words[0] != "run" or not existing or labelled or not commit:
        return words
    return ["run", "--set-commit-hash", commit, *words[1:]]


def gpu_name() -> str:
    """Return the name of the GPU that a run would use, empty without one."""
    try:
        nvml = gpu.open_nvml()
        found = gpu.device_facts(nvml, gpu.find_device(nvml, os.environ, None))
    except gpu.NoGpu:
        return ""
    return found["gpu"] or ""


def write_machine_file(graphics: str, path: Path | None = None) -> dict[str, str]:
    """Write this machine into asv's machine file, keeping what a user has put there.

    Parameters
    ----------
    graphics : str
        The GPU's name. asv shows any further field as a facet of its site; the driver's version
        is left out, since each update would split the curves.
    path : Path, optional
        The file; asv's own, in the home directory, by default.

    Returns
    -------
    dict
        The machine's entry.
    """
    from asv.machine import Machine, MachineCollection
    from asv.util import UserError

    name = Machine.get_unique_machine_name()
    place = None if path is None else str(path)
    try:
        known = MachineCollection.load(name, _path=place)
    except UserError:
        known = {}
    entry: dict[str, str] = {**Machine.get_defaults(), **known, "machine": name}
    if graphics:
        entry["gpu"] = graphics
    MachineCollection.save(name, entry, _path=place)
    return entry
