"""Tests and measurements of a GPU machine in one command, within a time limit.

    python benchmarks/device.py OUT [--seconds 540] [--steps facts,build,tests,inference,…]

The steps run in the order of their importance, each in separate processes that are stopped after
their share of the time. Their output until then is kept:

facts      the machine, torch and Triton
build      the C++ kernels, in place, for this Python
engines    the engines that run here, and why the others do not
tests      the tests that need a GPU, agreement with float64 included
inference  the suite of that name: inference.jsonl
training   the suite of that name: training.jsonl
profile    a forward pass and a step, layer by layer against the roofline: profile-*/
layers     the suite of that name, single convolutions and maps: layers.jsonl
widths     only on request: our kernels in every width and type, which compile for minutes

Run it from a checkout; nothing is downloaded. ``--wheels DIR`` installs wheels into a separate
folder that has precedence in this run. The script imports only the standard library, so that it
runs on a minimal image. Steps with missing packages are skipped with one sentence.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_STEPS = (
    "facts",
    "build",
    "engines",
    "tests",
    "inference",
    "training",
    "profile",
    "layers",
)
STEPS = (*DEFAULT_STEPS, "widths")
NEEDS_PACKAGES = ("engines", "inference", "training", "profile", "layers")
"""Steps that run the harness, which imports the project's dependencies."""

GRACE = 5.0
"""Seconds between the interruption of a program and its end by SIGKILL."""


@dataclass(frozen=True)
class Command:
    """One program of a step, and the share of the remaining time that it may take."""

    step: str
    words: tuple[str, ...]
    share: float


def missing_packages(extra: Path | None = None, root: Path = ROOT) -> list[str]:
    """Return the project's dependencies that are not installed.

    Parameters
    ----------
    extra : Path, optional
        A folder of packages that is searched as well.
    root : Path
        The folder of pyproject.toml.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    paths = [*sys.path, *([str(extra)] if extra else [])]
    installed = {_normalised(found.metadata["Name"]) for found in distributions(path=paths)}
    wanted = [re.split(r"[^\w.-]", entry)[0] for entry in project["dependencies"]]
    return [name for name in wanted if _normalised(name) not in installed]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def commands(options: argparse.Namespace, python: str) -> list[Command]:
    """List the programs of the chosen steps, in order."""
    out: Path = options.out
    harness = (python, "-m", "harness")
    build = str(ROOT / "build" / "device")
    tests = (python, "-m", "pytest", "-q", "-W", "default", "--continue-on-collection-errors")
    backends = [word for name in options.backend for word in ("--backend", name)]
    cells = [word for size in options.size for word in ("--size", str(size))]
    batches = [word for batch in options.batch for word in ("--batch", str(batch))]
    run = ("--device", "cuda", "--budget", str(options.budget), "--precision", options.precision,
           *backends, *cells)  # fmt: skip

    def suite(name: str, share: float, *more: str) -> Command:
        words = (*harness, "run", name, *run, *more, "--out", str(out / f"{name}.jsonl"))
        return Command(name, words, share)

    def profile(phase: str) -> Command:
        words = (*harness, "profile", "--device", "cuda", "--backend", options.backend[0],
                 "--size", str(options.size[0]), "--batch", str(options.batch[0]),
                 "--phase", phase, "--precision", options.precision, "--seconds", "5",
                 "--out", str(out / f"profile-{phase}"))  # fmt: skip
        return Command("profile", words, 0.3)

    listed = [
        Command("facts", ("nvidia-smi",), 0.05),
        Command("facts", (python, "-c", "import torch, triton; print(torch.__version__, "
                          "triton.__version__, torch.cuda.get_device_properties(0))"), 0.1),
        Command("build", ("cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja",
                          f"-DPython_EXECUTABLE={python}"), 0.2),
        Command("build", ("cmake", "--build", build), 0.4),
        Command("build", ("cmake", "--install", build, "--prefix", str(ROOT)), 0.2),
        Command("engines", (*harness, "backends"), 0.2),
        Command("tests", (*tests, "-m", "cuda and not slow", "tests/backends"), 0.5),
        suite("inference", 0.5, *batches),
        suite("training", 0.6, *batches),
        profile("forward"),
        profile("step"),
        suite("layers", 1.0, *batches),
        Command("widths", (*tests, "-m", "cuda and slow", "tests/backends/sscn"), 1.0),
    ]  # fmt: skip
    return [command for command in listed if command.step in options.steps]


def install(wheels: Path, python: str, log: Path) -> Path:
    """Install wheels into a new folder, without their dependencies, and return the folder."""
    target = Path(tempfile.mkdtemp(prefix="wheels-"))
    files = sorted(str(file) for file in wheels.glob("*.whl"))
    words = (python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
             "--target", str(target), *files)  # fmt: skip
    execute(words, dict(os.environ), log, 300.0)
    return target


def execute(
    words: Sequence[str], variables: dict[str, str], log: Path, seconds: float
) -> tuple[str, float]:
    """Run a program with its output in the log, for at most a number of seconds.

    Returns
    -------
    outcome : str
        ``ok``, ``exit N``, ``missing`` or ``time is up``.
    wall : float
        Seconds it took.
    """
    start = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(words)}\n")
        file.flush()
        try:
            process = subprocess.Popen(
                words, cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True
            )
        except FileNotFoundError:
            return "missing", 0.0
        try:
            code = process.wait(timeout=max(seconds, 1.0))
            outcome = "ok" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            outcome = "time is up"
            _stop(process)
    return outcome, time.monotonic() - start


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a program and everything that it started, and kill what remains."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, sign)
        try:
            process.wait(timeout=GRACE)
            return
        except subprocess.TimeoutExpired:
            continue


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    parser.add_argument("--seconds", type=float, default=540.0, help="for all steps together")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=list(DEFAULT_STEPS))
    parser.add_argument("--wheels", type=lambda text: Path(text).resolve(), help="more packages")
    parser.add_argument("--backend", action="append", help="engines of the suites")
    parser.add_argument("--size", type=int, action="append", help="sizes of the suites")
    parser.add_argument("--batch", type=int, action="append", help="batches of the suites")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of sampling per cell")
    options = parser.parse_args(arguments)
    unknown = set(options.steps) - set(STEPS)
    if unknown:
        parser.error(f"there is no step {sorted(unknown)[0]!r}; choose from {', '.join(STEPS)}")
    options.backend = options.backend or ["sscn"]
    options.size = options.size or [192]
    options.batch = options.batch or [1, 4, 64]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, and print the outcome of each; the exit code is 1 if any was not ok."""
    options = parse(arguments)
    end = time.monotonic() + options.seconds - 2 * GRACE
    options.out.mkdir(parents=True, exist_ok=True)
    log, summary = options.out / "log.txt", options.out / "summary.txt"
    log.touch()
    extra = install(options.wheels, sys.executable, log) if options.wheels else None
    paths = [str(ROOT), *([str(extra)] if extra else [])]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    variables = os.environ | {
        "PYTHONUNBUFFERED": "1", "COLUMNS": "160", "PYTHONPATH": os.pathsep.join(paths)
    }  # fmt: skip
    lines = []
    not_run: set[str] = set()
    absent = missing_packages(extra)
    if absent and set(options.steps) & set(NEEDS_PACKAGES):
        not_run = set(options.steps) & set(NEEDS_PACKAGES)
        lines.append(
            f"Missing here: {', '.join(absent)}; install them or give their wheels with --wheels, "
            f"otherwise these steps are left out: {', '.join(s for s in STEPS if s in not_run)}."
        )
        print(lines[-1], flush=True)
    failed = bool(not_run)
    for command in commands(options, sys.executable):
        left = end - time.monotonic()
        if command.step in not_run:
            continue
        if left <= 1.0:
            outcome, wall = "no time left", 0.0
        else:
            outcome, wall = execute(command.words, variables, log, left * command.share)
        if outcome != "ok":
            failed = True
            not_run.add(command.step)
        words = " ".join(Path(word).name for word in command.words[:5])
        lines.append(f"{command.step:10} {outcome:12} {wall:7.1f} s  {words}")
        print(lines[-1], flush=True)
        summary.write_text("\n".join(lines) + "\n")
    print(log.read_text()[-8000:])
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
