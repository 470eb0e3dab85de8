"""All that a GPU machine should do for this project, in one command and within a time limit.

    python benchmarks/device/measure.py OUT [--seconds 560] [--steps facts,build,tests,…]

Run from a checkout; nothing is downloaded. Each step writes to OUT/log.txt and ends before the
time is up, so that what was measured until then is kept:

facts      the machine and the engines that run on it
build      the C++ kernels, in place, for this Python (skipped where a compiler lacks)
tests      the tests that need a GPU
kernels    maps and convolutions alone, against the machine's ceilings (kernels.json)
network    the whole network: launched, and replayed as a CUDA graph (network.json)
inference  the suite of that name (inference.jsonl)
training   the suite of that name (training.jsonl)
widths     only if asked for: our kernels in every width and type, which compiles for minutes

``--wheels DIR`` installs wheels of other engines beside the checkout first, for this run only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("facts", "build", "tests", "kernels", "network", "inference", "training")
MORE_STEPS = ("widths",)
GRACE = 5.0
"""Seconds that a step gets to write down what it has before it is killed."""


@dataclass(frozen=True)
class Command:
    """One program of a step, and the share of the remaining time that it may take."""

    step: str
    words: tuple[str, ...]
    share: float


def commands(options: argparse.Namespace, python: str) -> list[Command]:
    """List the programs of the chosen steps, in order."""
    out: Path = options.out
    harness = (python, "-m", "harness")
    run = ["--device", "cuda", "--budget", str(options.budget), "--precision", options.precision]
    for name in ("backend", "size", "batch"):
        for value in getattr(options, name):
            run += [f"--{name}", str(value)]
    build = str(ROOT / "build" / "device")
    tests = (python, "-m", "pytest", "-q", "-W", "default", "--continue-on-collection-errors")
    listed = [
        Command("facts", ("nvidia-smi",), 0.05),
        Command("facts", (python, "-c", "import torch, triton; print(torch.__version__, "
                          "triton.__version__, torch.cuda.get_device_properties(0))"), 0.1),
        Command("facts", (*harness, "backends"), 0.2),
        Command("build", ("cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja",
                          f"-DPython_EXECUTABLE={python}"), 0.2),
        Command("build", ("cmake", "--build", build), 0.4),
        Command("build", ("cmake", "--install", build, "--prefix", str(ROOT)), 0.2),
        Command("tests", (*tests, "-m", "cuda and not slow", "tests/backends"), 0.5),
        Command("widths", (*tests, "-m", "cuda and slow", "tests/backends/sscn"), 0.8),
        Command("kernels", (python, str(Path(__file__).with_name("kernels.py")),
                            str(out / "kernels.json")), 0.5),
        Command("network", (python, str(Path(__file__).with_name("network.py")),
                            str(out / "network.json")), 0.4),
        Command("inference", (*harness, "run", "inference", *run,
                              "--out", str(out / "inference.jsonl")), 0.6),
        Command("training", (*harness, "run", "training", *run,
                             "--out", str(out / "training.jsonl")), 1.0),
    ]  # fmt: skip
    return [command for command in listed if command.step in options.steps]


def environment(out: Path, wheels: Path | None, python: str, log: Path) -> dict[str, str]:
    """Return the variables that programs run under; wheels go to a folder that they find first."""
    found = dict(os.environ, PYTHONUNBUFFERED="1", COLUMNS="160")
    paths = [str(ROOT)]
    if wheels is not None:
        target = tempfile.mkdtemp(prefix="engines-")
        files = sorted(str(file) for file in wheels.glob("*.whl"))
        install = (python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--target", target, *files)  # fmt: skip
        execute(install, found, log, 300.0)
        paths.append(target)
    if "PYTHONPATH" in found:
        paths.append(found["PYTHONPATH"])
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def execute(
    words: Sequence[str], variables: dict[str, str], log: Path, seconds: float
) -> tuple[str, float]:
    """Run a program with its output in the log, for so many seconds at most.

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
    """End a program and what it started: first as Ctrl-C would, then for good."""
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
    parser.add_argument("--seconds", type=float, default=560.0, help="for everything together")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=list(STEPS))
    parser.add_argument("--wheels", type=lambda text: Path(text).resolve(), help="other engines")
    parser.add_argument("--backend", action="append", help="engines of the suites")
    parser.add_argument("--size", type=int, action="append", help="sizes of the suites")
    parser.add_argument("--batch", type=int, action="append", help="batches of the suites")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of sampling a cell")
    options = parser.parse_args(arguments)
    known = STEPS + MORE_STEPS
    unknown = set(options.steps) - set(known)
    if unknown:
        parser.error(f"there is no step {sorted(unknown)[0]!r}; choose from {', '.join(known)}")
    options.backend = options.backend or ["sscn"]
    options.size = options.size or [192]
    options.batch = options.batch or [4]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, and print what became of each; the exit code is 1 if any failed."""
    options = parse(arguments)
    end = time.monotonic() + options.seconds - 2 * GRACE
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "log.txt"
    log.touch()
    variables = environment(options.out, options.wheels, sys.executable, log)
    lines = []
    broken: set[str] = set()
    for command in commands(options, sys.executable):
        left = end - time.monotonic()
        if command.step in broken:
            continue
        if left <= 1.0:
            outcome, wall = "no time left", 0.0
        else:
            outcome, wall = execute(command.words, variables, log, left * command.share)
        if outcome != "ok":
            broken.add(command.step)
        words = " ".join(Path(word).name for word in command.words[:5])
        lines.append(f"{command.step:10} {outcome:12} {wall:7.1f} s  {words}")
        print(lines[-1], flush=True)
    (options.out / "summary.txt").write_text("\n".join(lines) + "\n")
    print(log.read_text()[-8000:])
    print("\n".join(lines))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
