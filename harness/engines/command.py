"""``python -m harness engines``: list, install, remove, check and prove engines."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.errors import BadInput
from harness.instruments.machine import ROOT
from harness.options import positive
from harness.terminal import program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TOOLS = {
    "c++": "engines that are compiled need it",
    "git": "engines without a package need it",
    "nvcc": "engines that are compiled for CUDA need it",
    "nvidia-smi": "there is no NVIDIA GPU",
}
"""Programs, and why they matter."""

Timeout = Annotated[
    float, typer.Option(callback=positive, help="Longest time for one answer, in seconds.")
]


@app.callback(invoke_without_command=True)
def engines(context: typer.Context, timeout: Timeout = 60.0) -> None:
    """Show the engines that can run here; other verbs are below."""
    if context.invoked_subcommand is None:
        list_engines(timeout)


@app.command("list")
def list_engines(timeout: Timeout = 60.0) -> None:
    """Show the engines that can run here, their devices and precisions, and why others cannot."""
    from backends.registry import names, probe_all
    from backends.table import absences, engines_table

    answers = {found.name: found for found in probe_all(timeout=timeout)}
    ordered = [answers[name] for name in names()]
    console = Console()
    console.print(engines_table(ordered))
    console.print("not here:", *absences(ordered), sep="\n  ", markup=False, soft_wrap=True)


@app.command()
def install(
    engine: Annotated[str, typer.Argument(help="NAME or NAME==VERSION.")],
    cuda: Annotated[str, typer.Option(help="Version of CUDA, such as 12.6.")] = "",
    torch: Annotated[str, typer.Option(help="Version of torch; by default the one here.")] = "",
    source: Annotated[
        Path | None,
        typer.Option(help="A folder with the engine's source, in place of the network."),
    ] = None,
) -> None:
    """Install an engine in an environment of its own, compare it with float64, and register it."""
    from harness.engines.install import install as make
    from harness.engines.recipe import Recipe

    recipe = Recipe.find(engine, cuda, torch=torch, own_source=source is not None)
    start = time.monotonic()

    def say(text: str) -> None:
        typer.echo(f"[{time.monotonic() - start:4.0f} s] {text}")

    made = make(recipe, source, say)
    say(made.proof)
    typer.echo(f"installed: {made.name} with torch {made.torch}, in {made.path}")
    typer.echo(f"measure it with: {program()} run demo --backend {made.name}")


@app.command()
def remove(
    engine: Annotated[str, typer.Argument(help="NAME@VERSION, as ``list`` shows it.")],
) -> None:
    """Remove an engine that ``install`` has installed."""
    from harness.engines.install import remove as take_away

    take_away(engine)
    typer.echo(f"removed: {engine}")


@app.command()
def slurm(
    suite: Annotated[str, typer.Argument(help="The suite to run.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="Further options of run, after --.")
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Engines to run.")] = None,
    partition: Annotated[str, typer.Option(help="Partition; by default the cluster's.")] = "",
    account: Annotated[str, typer.Option(help="Account to charge.")] = "",
    time: Annotated[str, typer.Option(help="Longest duration of the job.")] = "02:00:00",
    cpus: Annotated[int, typer.Option(help="Processors.", min=1)] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs.", min=0)] = 0,
    memory: Annotated[str, typer.Option(help="Memory, such as 32G.")] = "",
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Let no other job run on the node.")
    ] = False,
    image: Annotated[Path | None, typer.Option(help="An image of Apptainer to run in.")] = None,
) -> None:
    """Print a job script for Slurm that runs a suite on one node; pipe it into ``sbatch``."""
    from backends.registry import module_name
    from harness.engines.slurm import Node, job_script
    from harness.spec.suite import find_suite, parse_engine

    find_suite(suite)
    for text in backend or ():
        module_name(parse_engine(text)[0])
    node = Node(partition, account, time, cpus, gpus, memory, exclusive)
    typer.echo(job_script(suite, backend or (), options or (), node, image), nl=False)


@app.command()
def doctor(timeout: Timeout = 60.0) -> None:
    """Check the tools that installations need, and each installed engine.

    Exits with 1 if an installed engine cannot run.
    """
    from backends.environments import installed
    from backends.registry import interpreter, probe_all

    for tool, purpose in TOOLS.items():
        place = shutil.which(tool)
        typer.echo(f"{tool:8} {place or f'not here: {purpose}'}")
    found = installed()
    broken = 0
    for answer in probe_all(found, timeout) if found else ():
        state = "ok" if answer.capabilities else f"BROKEN: {answer.reason}"
        broken += answer.capabilities is None and "not proved" not in found[answer.name].proof
        proof = found[answer.name].proof
        typer.echo(f"{answer.name:8} {state}; {proof}; {interpreter(answer.name)}")
    raise typer.Exit(1 if broken else 0)


@app.command()
def prove(
    name: Annotated[str, typer.Argument(help="An engine, built in or of an installed package.")],
) -> None:
    """Check one engine: agreement with float64, and fair warm and cold passes.

    Exits with 1 if a check fails.
    """
    from backends.environments import code
    from backends.registry import interpreter, probe

    found = probe(name)
    if found.capabilities is None:
        raise BadInput(f"{name} cannot run here: {found.reason}; see: {program()} engines")
    path = os.pathsep.join([str(code(ROOT)), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [interpreter(name), "-P", "-m", "backends.proof", name]
    raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)
