"""Job scripts for Slurm: one suite on one node."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BadInput

TIME = re.compile(r"\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2}")
"""Times of Slurm: minutes, MM:SS, HH:MM:SS, D-HH and so on."""

MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True)
class Node:
    """What a job asks of Slurm.

    Attributes
    ----------
    partition, account : str
        As in ``sbatch``; empty for the defaults of the cluster.
    time : str
        Longest duration, in a format of Slurm.
    cpus, gpus : int
        Processors and GPUs.
    memory : str
        A number with K, M, G or T; empty for the default of the partition.
    exclusive : bool
        Whether no other job may run on the node.
    """

    partition: str = ""
    account: str = ""
    time: str = "02:00:00"
    cpus: int = 8
    gpus: int = 0
    memory: str = ""
    exclusive: bool = False

    def directives(self, name: str) -> list[str]:
        """Return the options of ``sbatch``.

        Raises
        ------
        BadInput
            If a value is none that Slurm understands.
        """
        if not TIME.fullmatch(self.time):
            raise BadInput(f"--time {self.time!r} is no time of Slurm; write 02:00:00, for example")
        if self.memory and not MEMORY.fullmatch(self.memory):
            raise BadInput(f"--memory {self.memory!r} is no size of Slurm; write 32G, for example")
        for option, value in (("partition", self.partition), ("account", self.account)):
            if value and not re.fullmatch(r"[\w.,@-]+", value):
                raise BadInput(f"--{option} {value!r} is no name of Slurm")
        asked = {
            "job-name": name,
            "output": f"{name}-%j.log",
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(self.cpus),
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "gres": f"gpu:{self.gpus}" if self.gpus else "",
            "mem": self.memory,
        }
        listed = [f"--{option}={value}" for option, value in asked.items() if value]
        return [*listed, "--exclusive"] if self.exclusive else listed


def job_script(
    suite: str,
    engines: Sequence[str],
    options: Sequence[str],
    node: Node,
    image: Path | None = None,
) -> str:
    """Return a job script that runs a suite and prints its comparison.

    Parameters
    ----------
    suite : str
    engines : sequence of str
        By default those of the suite.
    options : sequence of str
        Further options of ``run``.
    node : Node
        What the job asks for.
    image : Path or None
        An image of Apptainer to run in, instead of this Python.
    """
    name = f"sscn-bench-{suite}"
    if image is not None:
        nvidia = ["--nv"] if node.gpus else []
        program = ["apptainer", "run", *nvidia, str(image)]
    else:
        program = [sys.executable, "-m", "harness"]
    chosen = [word for engine in engines for word in ("--backend", engine)]
    command = shlex.join([*program, "run", suite, *chosen, *options])
    directives = "\n".join(f"#SBATCH {each}" for each in node.directives(name))
    return f"""\
#!/bin/bash
{directives}

set -eu
cd {shlex.quote(str(Path.cwd()))}
{command} --out "results/runs/slurm-$SLURM_JOB_ID-{suite}.jsonl"
"""
