"""The command ``python -m harness asv``: asv with this machine's facts and commit filled in."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from harness.asv import track
from harness.child_process import die_with_parent, end_session, start_session
from harness.errors import BadInput, missing_packages
from harness.examples import EXAMPLES
from harness.instruments import gpu, machine
from harness.terminal import program

CONFIGURATION = Path("asv.conf.json")
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""All that follows on the command line, ``--help`` included, goes to asv."""


NOTES = f"""Environment variables of asv's runs here:
  {track.ONLY}     engines to measure, separated by commas; all by default
  {track.BUDGET}   seconds of sampling per cell and round
  {track.RECORDS}  folder in which the records behind asv's numbers are kept

Results are stored under the name of the processor, not of the host. The pages of `publish` and
`preview` load scripts from the network; `python -m harness history --report DIR` needs none.
"""
"""Printed before asv's own help."""

WITH_MACHINE = ("run", "continuous", "find", "show")
"""asv's commands that take the name of a machine."""


def asv(context: typer.Context) -> None:
    """Run asv with its own arguments: run, continuous, compare, publish, preview, show.

    All arguments after ``asv`` are asv's own. Before it starts, the processor, memory and GPU of
    this machine are written to asv's machine file, under the processor's name. A run in an existing
    environment is labelled with the commit that is checked out, since asv would otherwise discard
    its results. The progress of the measurement, and waiting for another run's lock, are printed.
    """
    words = list(context.args)
    helping = not words or bool({"-h", "--help"} & set(words))
    if helping:
        typer.echo(NOTES)
        typer.echo(f"Example: {program()} asv {EXAMPLES['asv']}\n")
    if importlib.util.find_spec("asv") is None:
        missing = missing_packages("asv", "asv")
        if not helping:
            raise missing
        typer.echo(missing)
        return
    if not CONFIGURATION.exists():
        raise BadInput(f"there is no {CONFIGURATION} here; go to the root of the repository first")
    track.budget_of(os.environ)
    name = write_machine_file(gpu_name())["machine"]
    arguments = with_machine(with_commit(words, machine.commit(Path.cwd())[0]), name)
    raise typer.Exit(run_with_progress([sys.executable, "-m", "asv", *arguments]))


def run_with_progress(command: Sequence[str]) -> int:
    """Run asv, print the progress of its measurements, and return its exit status.

    asv captures the output of benchmarks, which therefore write their progress to a file.
    """
    with tempfile.TemporaryDirectory(prefix="sscn-bench-asv-") as folder:
        path = Path(folder, "progress.txt")
        path.touch()
        environment = os.environ | {track.PROGRESS: str(path)}
        child = start_session(command, env=environment, preexec_fn=die_with_parent)
        try:
            with path.open(encoding="utf-8", errors="replace") as progress:
                while True:
                    ended = child.poll() is not None
                    sys.stderr.write(progress.read())
                    sys.stderr.flush()
                    if ended:
                        return child.returncode
                    time.sleep(0.2)
        except BaseException:
            end_session(child)  # with the benchmark that it runs
            raise


def with_machine(arguments: Sequence[str], name: str) -> list[str]:
    """Add the machine's name to a command that takes one, unless it has one.

    Parameters
    ----------
    arguments : sequence of str
        asv's own arguments.
    name : str
        Of this machine.
    """
    words = list(arguments)
    named = any(word in ("-m", "--machine") or word.startswith("--machine=") for word in words)
    if not words or words[0] not in WITH_MACHINE or named:
        return words
    return [words[0], "--machine", name, *words[1:]]


def processor_slug(processor: str, processors: str) -> str:
    """Return a folder's name for a machine: ``amd-epyc-7b13-2``, processor and their number."""
    text = re.sub(r"\((?:R|TM)\)|\b(?:CPU|Processor)\b", " ", processor, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9.]+", text.lower())
    return "-".join([*words, processors] if words else ["unknown", processors])[:100]


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
    """Write this machine into asv's machine file under its processor's name.

    Fields that a user has added to its entry are kept.

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

    defaults = Machine.get_defaults()
    name = processor_slug(defaults["cpu"], defaults["num_cpu"])
    place = None if path is None else str(path)
    try:
        stored = MachineCollection.load(name, _path=place)
    except UserError:
        stored = {}
    entry: dict[str, str] = {**defaults, **stored, "machine": name}
    if graphics:
        entry["gpu"] = graphics
    MachineCollection.save(name, entry, _path=place)
    return entry
