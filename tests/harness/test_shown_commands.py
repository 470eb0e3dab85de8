"""Every command that the documentation shows is run here, by another test, or has a reason."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.events import open_sample
from tests.harness.conftest import first_voxels
from tests.harness.events.files import write_larcv2
from tests.test_docs import PAGES, ROOT, shown

LISTS = tomllib.loads(Path(__file__).with_name("shown_commands.toml").read_text())

LESS = {
    "run": "--backend sscn --size 192 --batch 1 --budget 0.02",
    "profile": "--seconds 0.02",
    "boundary": "--backend sscn --size 192 --most 1",
    "train": "--steps 1 --batch 1 --held-out mine.root",
    "events simulate": "--count 2",
}
"""Command -> options that make it short; a choice of the command itself is kept."""


PACKAGES = {
    "minkowski": "MinkowskiEngine",
    "spconv": "spconv",
    "events simulate": "calzone",
    "run spine": "spine",
}
"""Word of a command -> the package without which it is left out."""


def listed(*names):
    """Return the commands of sections of the lists."""
    return [line for name in names for text in LISTS[name].values() for line in text.splitlines()]


def pages():
    """Yield each page with its commands; a script is a job of a cluster."""
    for page in PAGES:
        yield page, [line for line in shown(page, scripts=False) if line]


def test_commands_that_do_not_run_here_are_shown_once_in_a_list():
    found = {line for _, lines in pages() for line in lines}
    left = listed("not_run", "run_by")
    assert len(left) == len(set(left))
    assert {*left, *LISTS["before"]} <= found


@pytest.mark.parametrize("name", LISTS["run_by"])
def test_the_test_that_runs_a_command_exists(name):
    path, _, test = name.partition("::")
    assert f"def {test}(" in (ROOT / path).read_text()


def shorter(line):
    """Add the options of ``LESS`` to a command."""
    found = re.search(r"python -m harness ((?:events )?[a-z]+)", line)
    for name, value in re.findall(r"(--[a-z-]+) (\S+)", LESS.get(found[1] if found else "", "")):
        chooses = name in ("--backend", "--size", "--batch") and found[1] != "train"
        if not (chooses and re.search(rf"{name}\b", line)):
            line += f" {name} {value}"
    return line


def checkout(folder):
    """Clone the working tree with the files that pages name; return the variables of a shell."""
    clone = folder / "clone"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "clone", "--quiet", ROOT, clone], check=True)
    changes = subprocess.run([*git, "diff", "--binary", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    if changes.stdout:
        subprocess.run([*git, "apply"], cwd=clone, input=changes.stdout, check=True)
        subprocess.run([*git, "commit", "--quiet", "-am", "Changes"], cwd=clone, check=True)
    for kernels in (ROOT / "backends/sscn/cpu").glob("_kernels*.so"):
        shutil.copy(kernels, clone / kernels.relative_to(ROOT))
    configuration = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/spine.md").read_text(), re.DOTALL)
    (clone / "uresnet.yaml").write_text(configuration[1])

    programs = folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\nexec bash -n\n")  # is it a script?
    (programs / "sbatch").chmod(0o755)
    # An editable installation has precedence over the folder of the clone on import.
    (programs / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
    )
    path = [programs, Path(sys.executable).parent, os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(map(str, path)),
        "PYTHONPATH": str(programs),
        "SSCN_BENCH_REFERENCES": str(folder / "references"),
        "SSCN_BENCH_ENGINES": str(folder / "engines"),
        "TMPDIR": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
    }


def kept():
    """Yield each page with the commands that are run here."""
    left = set(listed("not_run", "run_by"))
    for page, lines in pages():
        found = [line for line in lines if line not in left]
        if found:
            yield pytest.param(page, found, id=str(page.relative_to(ROOT)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("page", "lines"), list(kept()))
def test_shown_commands_run(page, lines, tmp_path):
    pytest.importorskip("awkward")
    variables = checkout(tmp_path)
    clone = tmp_path / "clone"
    events = [first_voxels(open_sample(192)[0], count) for count in (500, 0, 0, 500)]
    write_larcv2(clone / "mine.root", events)
    missing = [word for word, name in PACKAGES.items() if not importlib.util.find_spec(name)]
    for line in lines:
        if any(word in line for word in missing):
            continue
        command = shorter(line).replace("FILE", "mine.root")
        ran = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", LISTS["before"].get(line, "") + f"\n{command}"],
            cwd=clone,
            env=variables,
            capture_output=True,
            text=True,
        )
        ends = (0, 1) if "--fail-on" in line else (0,)
        assert ran.returncode in ends, f"{command}: {ran.stdout}{ran.stderr}"
