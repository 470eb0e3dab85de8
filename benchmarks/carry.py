"""One folder to carry to a GPU machine without a network; ``device.py --carried`` uses it.

    python -m benchmarks.carry FOLDER --python 3.12 --triton 3.6.0

It needs no GPU. The folder has:

packages.tar.xz  packages that the machine lacks, and spconv for CUDA 12.6
compiled.tar.xz  our kernels in C++
kernels.tar.xz   the kernels of the standard network, compiled for compute capability 9.0
references/      float64 references of the smaller cells of the suites
commit           the commit that is carried, unless tracked files differ from it
contents.json    versions, sizes, and the seconds that each part took

``image.txt`` lists the packages that are left out: those of the machine's image. Wheels are those
for the machine's Python and Linux on x86-64, in the versions of ``constraints.txt``. Unpacked
wheels in one archive under xz need half the space of the wheels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.instruments.machine import commit, git

ROOT = Path(__file__).resolve().parent.parent
IMAGE = Path(__file__).with_name("image.txt")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
MOST = 60e6
"""Bytes of the folder."""

LEFT_OUT = re.compile(r"^plotly/package_data/|/labextensions?/|/tests?/|\.(js\.map|a)$|^share/")
"""Files of packages that nothing here reads."""

SPCONV = "spconv-cu126"
"""The extra of pyproject.toml with the peer engine."""

REFERENCES = (("inference", 1), ("inference", 4))
"""Suites and batches whose references are carried; those of steps take 22 MB each."""


def normalised(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def image_packages(file: Path) -> set[str]:
    """Read the names of packages that the machine has."""
    lines = file.read_text().splitlines()
    return {normalised(name) for line in lines for name in line.split("#")[0].split()}


def requirements() -> list[str]:
    """Return what the project and its peer engine require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][SPCONV]]


def needs(wheel: Path, python: str) -> list[str]:
    """Return what a wheel requires, without extras."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    environment = {**default_environment(), "python_version": python, "extra": ""}
    with zipfile.ZipFile(wheel) as file:
        (name,) = (each for each in file.namelist() if each.endswith(".dist-info/METADATA"))
        lines = file.read(name).decode().splitlines()
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")]
    wanted = [Requirement(each) for each in found]
    return [
        f"{each.name}{each.specifier}"
        for each in wanted
        if each.marker is None or each.marker.evaluate(environment)
    ]


def download(wanted: Sequence[str], folder: Path, python: str, there: set[str]) -> list[Path]:
    """Download wheels and everything that they need, except what the machine has."""
    pinned = folder / "constraints.txt"
    folder.mkdir(parents=True, exist_ok=True)
    versions = {normalised(each.split("==")[0]) for each in wanted if "==" in each}
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    pinned.write_text(
        "".join(each for each in lines if normalised(each.split("==")[0]) not in versions)
    )
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    found: dict[str, Path] = {}
    todo = list(wanted)
    while todo:
        names = {normalised(re.split(r"[^\w.-]", each)[0]): each for each in todo}
        names = {name: each for name, each in names.items() if name not in {*there, *found}}
        if not names:
            break
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
             "--implementation", "cp", "--python-version", python, *platforms,
             "--find-links", str(folder), "-c", str(pinned), "-d", str(folder), *names.values()],
            check=True,
        )  # fmt: skip
        wheels = {normalised(wheel.name.split("-")[0]): wheel for wheel in folder.glob("*.whl")}
        found |= {name: wheels[name] for name in names}
        todo = [need for name in names for need in needs(wheels[name], python)]
    return sorted(found.values())


def build_own(interpreter: str, folder: Path) -> Path:
    """Build the wheel of this project for an interpreter."""
    words = [interpreter, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(words, check=True)
    return next(folder.glob("sscn_bench-*.whl"))


def files_of(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a wheel by the paths at which they are imported."""
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            place = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
            scripts = re.match(r"[^/]+\.data/", place)
            if not (name.endswith("/") or scripts or LEFT_OUT.search(place)):
                yield place, file.read(name)


def compiled_of(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the compiled kernels of our wheel; the checkout has the rest."""
    return ((name, content) for name, content in files_of(wheel) if name.endswith(".so"))


def pack(files: Iterator[tuple[str, bytes]], archive: Path) -> None:
    """Write files into an archive."""
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if ".so" in name else 0o644
            tar.addfile(entry, io.BytesIO(content))


def under(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a folder."""
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        yield str(file.relative_to(folder)), file.read_bytes()


def compile_kernels(triton: str, folder: Path, precisions: Sequence[str]) -> None:
    """Compile the kernels with a version of Triton, which is not installed here."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (wheel,) = download([f"triton=={triton}"], folder / "wheels", version, set())
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "triton")
    for tool in (folder / "triton").glob("triton/backends/nvidia/bin/*"):
        tool.chmod(0o755)
    words = [sys.executable, "-m", "benchmarks.kernel_cache", "compile", str(folder / "kernels")]
    words += [word for precision in precisions for word in ("--precision", precision)]
    variables = os.environ | {"PYTHONPATH": str(folder / "triton")}
    subprocess.run(words, check=True, cwd=ROOT, env=variables)


def compute_references(folder: Path) -> None:
    """Compute float64 references as the suites would."""
    from harness.run.job import Job
    from harness.run.plan import with_events, with_weights
    from harness.run.references import KEPT, last_variant, load_reference
    from harness.run.weight_files import TRAINED, find_weights
    from harness.spec.suite import find_suite

    folder.mkdir(parents=True, exist_ok=True)
    os.environ[KEPT] = str(folder)
    weights = find_weights(TRAINED)
    assert weights is not None
    for name, batch in REFERENCES:
        cells = find_suite(name).cells(backends=["sscn"], sizes=[192], batches=[batch])
        for cell in with_weights(with_events(cells, "sample"), weights):
            job = Job(cell, references=str(folder), weights=weights.name)
            for variant in ("", last_variant(cell)):
                load_reference(job, variant)


def write_commit(file: Path, root: Path = ROOT) -> None:
    """Write the object of the current commit, unless tracked files differ from it.

    From it and a copy of the files, git makes the same commit on the machine, so that records name
    what was measured.
    """
    file.unlink(missing_ok=True)
    named, changed = commit(root)
    if named and not changed:
        file.write_text(git(root, "cat-file", "commit", "HEAD"))


@contextmanager
def timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Measure and print how long a part takes."""
    start = time.monotonic()
    yield
    seconds[part] = round(time.monotonic() - start, 1)
    print(f"{part:10} {seconds[part]:7.1f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the folder; the exit code is 1 if it is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the machine's version of Python")
    parser.add_argument("--triton", default="3.6.0", help="its version of Triton")
    parser.add_argument("--installed", type=Path, default=IMAGE, help="names of its packages")
    parser.add_argument("--own", type=Path, help="our wheel for it, if it is built already")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are downloaded already")
    parser.add_argument("--precision", action="append", help="of the compiled kernels")
    parser.add_argument("--parts", default="packages,compiled,kernels,references")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts = options.parts.split(",")
    seconds: dict[str, float] = {}
    wheels: list[Path] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "packages" in parts:
            with timed("download", seconds):
                there = image_packages(options.installed)
                target = (options.wheels or scratch / "packages").resolve()
                wheels = download(requirements(), target, options.python, there)
            with timed("packages", seconds):
                files = (each for wheel in wheels for each in files_of(wheel))
                pack(files, folder / "packages.tar.xz")
        if "compiled" in parts:
            with timed("compiled", seconds):
                own = options.own or build_own(f"python{options.python}", scratch)
                pack(compiled_of(own), folder / "compiled.tar.xz")
        if "kernels" in parts:
            with timed("kernels", seconds):
                compile_kernels(options.triton, scratch, options.precision or ["fp32", "tf32"])
                pack(under(scratch / "kernels"), folder / "kernels.tar.xz")
    if "references" in parts:
        with timed("references", seconds):
            compute_references(folder / "references")
    sizes = {str(file.relative_to(folder)): file.stat().st_size
             for file in sorted(folder.rglob("*")) if file.is_file()}  # fmt: skip
    write_commit(folder / "commit")
    contents = {
        "python": options.python, "triton": options.triton, "seconds": seconds, "bytes": sizes,
        "wheels": [wheel.name for wheel in wheels],
    }  # fmt: skip
    (folder / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    total = sum(sizes.values())
    print(f"{folder.name}: {total / 1e6:.1f} MB of at most {MOST / 1e6:.0f}")
    return int(total > MOST)


if __name__ == "__main__":
    sys.exit(main())
