"""Images have the engines of the recipes, and the steps of the CPU's run in a Debian root."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "containers"
RECIPES = {
    path.stem: tomllib.loads(path.read_text())
    for path in (ROOT / "backends" / "recipes").glob("*.toml")
}

chroot = runpy.run_path(str(CONTAINERS / "chroot.py"), run_name="chroot")


def engines(name):
    return re.search(r'ENGINES="?([^"\n]*)', (CONTAINERS / name).read_text())[1].split()


def test_images_have_every_engine_that_fits():
    on_cpu = {name for name, recipe in RECIPES.items() if "cpu" in recipe["devices"]}
    assert set(engines("cpu.Containerfile")) == on_cpu
    # They need another Python, and another CUDA, than the base image has.
    assert set(engines("cuda.Containerfile")) == set(RECIPES) - {"torch-lattice", "minkowski"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_both_formats_do_the_same(kind):
    file, definition = f"{kind}.Containerfile", f"{kind}.def"
    assert engines(file) == engines(definition)
    text = (CONTAINERS / definition).read_text()
    steps = list(chroot["steps"]((CONTAINERS / file).read_text()))
    [base] = [rest for name, rest in steps if name == "FROM"]
    assert base.removeprefix("docker.io/").removeprefix("library/") in text
    for name, rest in steps:
        if name == "RUN":
            assert rest.replace("$ENGINES", "{{ ENGINES }}") in text
    assert subprocess.run(["sh", "-n", CONTAINERS / "install.sh"]).returncode == 0


def test_steps_of_a_file():
    text = '# a remark\nFROM base\nENV A=1 B="two words"\nRUN one && \\\n    two\n\nCOPY . /there\n'
    assert list(chroot["steps"](text)) == [
        ("FROM", "base"),
        ("ENV", 'A=1 B="two words"'),
        ("RUN", "one &&      two"),
        ("COPY", ". /there"),
    ]


def run_steps(*words, **variables):
    return subprocess.run(
        [sys.executable, CONTAINERS / "chroot.py", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs to be run as root")
def test_a_folder_without_a_system_is_refused(tmp_path):
    done = run_steps(CONTAINERS / "cpu.Containerfile", tmp_path)
    assert done.returncode == 2
    assert "has no system; make one with debootstrap" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs to be run as root")
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not here")
def test_the_image_of_the_cpu_is_built_in_a_chroot(tmp_path):
    root = tmp_path / "root"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", root, *mirror()],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no Debian mirror: {made.stdout[-300:]}")
    given = tmp_path / "given"
    given.mkdir()
    variables, binds = {}, [given]
    if certificates := os.environ.get("PIP_CERT"):
        shutil.copy(certificates, given / "certificates.crt")
        variables["PIP_CERT"] = str(given / "certificates.crt")
    binds += [Path(each) for each in os.environ.get("PIP_FIND_LINKS", "").split() if each[0] == "/"]
    options = [word for each in binds for word in ("--bind", each)]
    file = CONTAINERS / "cpu.Containerfile"
    done = run_steps(file, root, "--arg", "ENGINES=ocnn", *options, **variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    listed = subprocess.run(
        ["chroot", root, "/opt/venv/bin/sscn-bench", "engines", "doctor"],
        env={"SSCN_BENCH_ENGINES": "/opt/engines", "HOME": "/root", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert re.search(r"ocnn@\S+ +ok", listed.stdout), listed.stdout + listed.stderr


def mirror():
    """Return the mirror of this machine's package manager, if it has one."""
    texts = [path.read_text() for path in Path("/etc/apt").glob("sources.list.d/*.sources")]
    found = re.search(r"^URIs: (\S+/debian)$", "\n".join(texts), re.MULTILINE)
    return [found[1]] if found else []
