"""Tests and measurements of a GPU machine in three commands, each within nine minutes.

    python benchmarks/device.py OUT --part correctness --carried FOLDER
    python benchmarks/device.py OUT --part suites --carried FOLDER
    python benchmarks/device.py OUT --part profile --carried FOLDER

The parts, and the steps of each, run in the order of their value. Each step runs in separate
processes that are stopped after their share of the time. Their output until then is kept:

facts      the machine, torch and Triton
build      the C++ kernels, in place, for this Python, unless they were carried
engines    the engines that run here, and why the others do not
tests      the tests of our kernels that need a GPU: float64, CUDA graphs, waits
agreement  every engine against float64, and the other tests that need a GPU
sanitizer  compute-sanitizer on our kernels: memory, then races
inference  the suite of that name at batches 1, 4 and 64: inference.jsonl
training   the suite of that name: training.jsonl
profile    a forward pass and a step, layer by layer against the roofline: profile-*/
replay     times of kernels, and of passes as launched and as a CUDA graph: replay.jsonl
boundary   the largest batch of a step in 16 GB: boundary.jsonl
energy     longer samples of a step, whose records have the energy: energy.jsonl
layers     the suite of that name, single convolutions and maps: layers.jsonl
widths     only on request: our kernels in every width and type, which compile for minutes

Run it from a checkout; nothing is downloaded. ``--carried DIR`` uses the folder that
``benchmarks/carry.py`` made elsewhere, and ``--wheels DIR`` installs wheels; both go to separate
folders that have precedence in this run. The script imports only the standard library, so that it
runs on a minimal image. Steps with missing packages are skipped with one sentence.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "correctness": ("facts", "build", "engines", "tests", "agreement", "sanitizer"),
    "suites": ("build", "inference", "training"),
    "profile": ("build", "profile", "replay", "boundary", "energy", "layers"),
}
DEFAULT_STEPS = tuple(dict.fromkeys(step for steps in PARTS.values() for step in steps))
STEPS = (*DEFAULT_STEPS, "widths")
NEEDS_PACKAGES = tuple(
    step for step in DEFAULT_STEPS if step not in ("facts", "build", "tests", "sanitizer")
)
"""Steps that run the harness, which imports the project's dependencies."""

COMPILED = "backends/sscn/cpu/_kernels"
"""The compiled kernels for the CPU, without what their name says of Python."""

SANITIZED = "every_kind or few_tiles or brute_force or every_precision or norm_folded"
"""Tests that launch each kernel of ours, small enough for ``compute-sanitizer``."""

GRACE = 5.0
"""Seconds between the interruption of a program and its end by SIGKILL."""


@dataclass(frozen=True)
class Command:
    """One program of a step, and the share of the remaining time that it may take."""

    step: str
    words: tuple[str, ...]
    share: float
    variables: Mapping[str, str] = field(default_factory=dict)


def missing_packages(extra: Sequence[Path] = (), root: Path = ROOT) -> list[str]:
    """Return the project's dependencies that are not installed.

    Parameters
    ----------
    extra : sequence of Path
        Folders of packages that are searched as well.
    root : Path
        The folder of pyproject.toml.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    paths = [*sys.path, *map(str, extra)]
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
    tests = (python, "-m", "pytest", "-v", "-W", "default", "--continue-on-collection-errors")
    # Most of the time of a test is Triton's compiler, on one core.
    together = ("-n", str(options.processes)) if find_spec("xdist") else ()
    kernels = "tests/backends/sscn/test_cuda_kernels.py"
    plans = "tests/backends/sscn/test_launch_plan.py"
    backends = [word for name in options.backend for word in ("--backend", name)]
    cells = [word for size in options.size for word in ("--size", str(size))]
    batches = [word for batch in options.batch for word in ("--batch", str(batch))]
    run = ("--device", options.device, "--precision", options.precision, *backends, *cells)
    budget = ("--budget", str(options.budget))  # fmt: skip

    def suite(name: str, share: float, *more: str) -> Command:
        words = (*harness, "run", name, *run, *budget, *more, "--out", str(out / f"{name}.jsonl"))
        return Command(name, words, share)

    def sanitizer(tool: str, share: float) -> Command:
        words = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "99", *tests,
                 "-m", "cuda and not slow", "-k", SANITIZED, kernels)  # fmt: skip
        return Command("sanitizer", words, share, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    def profile(phase: str) -> Command:
        words = (*harness, "profile", "--device", options.device, "--backend", options.backend[0],
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
        Command("tests", (*tests, *together, "-m", "cuda and not slow", kernels, plans), 0.4),
        Command("agreement", (*tests, *together, "-m", "cuda and not slow", "tests/backends",
                              "tests/harness", "--ignore", kernels, "--ignore", plans), 0.6),
        sanitizer("memcheck", 0.6),
        sanitizer("racecheck", 1.0),
        suite("inference", 0.5, *batches),
        suite("training", 1.0, *batches),
        profile("forward"),
        profile("step"),
        Command("replay", (python, "-m", "benchmarks.replay", str(out / "replay.jsonl"),
                           "--size", str(options.size[0]), "--device", options.device,
                           *batches), 0.4),
        Command("boundary", (*harness, "boundary", "16", "--device", options.device, *backends,
                             "--size", str(options.size[-1]), "--timeout", "60",
                             "--out", str(out / "boundary.jsonl")), 0.4),
        Command("energy", (*harness, "run", "training", *run, "--batch", str(options.batch[-1]),
                           "--budget", "15", "--out", str(out / "energy.jsonl")), 0.4),
        suite("layers", 1.0, "--batch", str(options.batch[0])),
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


def unpack(carried: Path, python: str, log: Path) -> tuple[Path, dict[str, str]]:
    """Unpack a folder of ``carry.py``.

    Returns
    -------
    packages : Path
        A folder to import packages from.
    variables : dict
        Variables of the environment that name the references and the compiled kernels.
    """
    target = Path(tempfile.mkdtemp(prefix="carried-"))
    packages, kernels, cache = target / "packages", target / "kernels", target / "cache"
    own = target / "compiled"
    for folder in (packages, own, kernels):
        folder.mkdir()
        archive = carried / f"{folder.name}.tar.xz"
        if archive.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    for compiled in own.glob(f"{COMPILED}*"):
        shutil.copy(compiled, ROOT / compiled.relative_to(own))
    if (carried / "references").is_dir():
        shutil.copytree(carried / "references", target / "references")
    variables = {"SSCN_BENCH_REFERENCES": str(target / "references")}
    if any(kernels.iterdir()):
        words = (python, "-m", "benchmarks.kernel_cache", "adopt", str(kernels), str(cache))
        execute(words, dict(os.environ), log, 60.0)
        variables["TRITON_CACHE_DIR"] = str(cache)
    return packages, variables


def restore_commit(file: Path, folder: Path, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """Make a repository that has a copy of the files at the commit that was carried.

    Parameters
    ----------
    file : Path
        The object of the commit, as ``carry.py`` writes it.
    folder : Path
        Where the repository is made.
    root : Path
        The copy of the files.

    Returns
    -------
    outcome : str
        ``ok``, or why records will not name the commit.
    variables : dict
        Variables of the environment that name the repository.
    """
    variables = {"GIT_DIR": str(folder), "GIT_WORK_TREE": str(root)}

    def git(*words: str) -> str:
        done = subprocess.run(
            ("git", *words), check=True, capture_output=True, text=True, cwd=root,
            env=os.environ | variables,
        )  # fmt: skip
        return done.stdout.strip()

    if not file.exists():
        return "not carried", {}
    try:
        git("init", "-q")
        git("add", "-A")
        if file.read_text().split("\n")[0] != f"tree {git('write-tree')}":
            return "other files", {}
        commit = git("hash-object", "-w", "-t", "commit", str(file.resolve()))
    except FileNotFoundError:
        return "no git", {}
    except subprocess.CalledProcessError as error:
        return f"exit {error.returncode}", {}
    (folder / "HEAD").write_text(f"{commit}\n")
    return "ok", variables


def built() -> bool:
    """Return whether the checkout has compiled kernels for this Python."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return (ROOT / f"{COMPILED}{suffix}").exists()


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


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=lambda text: Path(text).resolve())
    parser.add_argument("--seconds", type=float, default=540.0, help="for all steps together")
    parser.add_argument("--part", choices=list(PARTS), help="the steps of one command")
    parser.add_argument("--steps", type=lambda text: text.split(","), help="these steps alone")
    parser.add_argument("--carried", type=_folder, help="folder that carry.py made")
    parser.add_argument("--wheels", type=lambda text: Path(text).resolve(), help="more packages")
    parser.add_argument("--device", default="cuda", help="cpu to rehearse without a GPU")
    parser.add_argument("--backend", action="append", help="engines of the suites")
    parser.add_argument("--size", type=int, action="append", help="sizes of the suites")
    parser.add_argument("--batch", type=int, action="append", help="batches of the suites")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of sampling per cell")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1),
                        help="of tests that run side by side, with pytest-xdist")  # fmt: skip
    options = parser.parse_args(arguments)
    options.steps = options.steps or list(PARTS.get(options.part, DEFAULT_STEPS))
    unknown = set(options.steps) - set(STEPS)
    if unknown:
        parser.error(f"there is no step {sorted(unknown)[0]!r}; choose from {', '.join(STEPS)}")
    options.backend = options.backend or ["sscn", *(["spconv"] if options.carried else [])]
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
    carried: dict[str, str] = {}
    of_git: dict[str, str] = {}
    extra: list[Path] = []
    lines = []
    if options.carried:
        start = time.monotonic()
        packages, carried = unpack(options.carried, sys.executable, log)
        extra.append(packages)
        wall = time.monotonic() - start
        lines.append(f"{'carried':10} {'ok':12} {wall:7.1f} s  unpacked")
        repository = Path(tempfile.mkdtemp(prefix="commit-"))
        outcome, of_git = restore_commit(options.carried / "commit", repository)
        lines.append(f"{'commit':10} {outcome:12} {time.monotonic() - start - wall:7.1f} s")
        print("\n".join(lines), flush=True)
    if options.wheels:
        extra.append(install(options.wheels, sys.executable, log))
    paths = [str(ROOT), *map(str, extra), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | carried | {
        "PYTHONUNBUFFERED": "1", "COLUMNS": "160", "PYTHONPATH": os.pathsep.join(paths)
    }  # fmt: skip
    not_run: set[str] = set()
    absent = missing_packages(extra)
    if built():
        options.steps = [step for step in options.steps if step != "build"]
    if absent and set(options.steps) & set(NEEDS_PACKAGES):
        not_run = set(options.steps) & set(NEEDS_PACKAGES)
        lines.append(
            f"Missing here: {', '.join(absent)}; install them or carry them with --carried, "
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
            changed = variables | dict(command.variables)
            if "harness" in command.words:  # tests make repositories of their own
                changed |= of_git
            outcome, wall = execute(command.words, changed, log, left * command.share)
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
