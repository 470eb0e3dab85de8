"""Runs the steps of a Containerfile in a root directory, without a container engine.

``python containers/chroot.py containers/cpu.Containerfile ROOT`` as root, where ROOT has the base
system: ``debootstrap --variant=minbase bookworm ROOT``. ``ENV``, ``ARG``, ``COPY`` and ``RUN`` are
understood; ``FROM`` is ROOT, and ``ENTRYPOINT`` is printed. Every step is printed before it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Return the instructions of a Containerfile and their arguments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


def run(file: Path, root: Path, given: Mapping[str, str], binds: list[Path]) -> int:
    """Run the steps; return the exit status of the first that fails, or 0."""
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    variables |= {"HOME": "/root", "LC_ALL": "C.UTF-8"}
    variables |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    with mounted(root, binds):
        for name, rest in steps(file.read_text()):
            print(f"{name} {rest}", flush=True)
            if name in ("ENV", "ARG"):
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    for known, its in variables.items():
                        value = value.replace(f"${known}", its)
                    variables[key] = given.get(key, value) if name == "ARG" else value
            elif name == "COPY":
                copy(root / rest.split()[1].lstrip("/"))
            elif name == "RUN":
                command = ["chroot", str(root), "/bin/sh", "-c", rest]
                code = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL).returncode
                if code:
                    print(f"{file.name}: exit status {code} of: {rest}", file=sys.stderr)
                    return code
            elif name not in ("FROM", "ENTRYPOINT"):
                print(f"{file.name}: {name} is not understood", file=sys.stderr)
                return 2
    return 0


def copy(target: Path) -> None:
    """Copy the files of this clone that git does not ignore."""
    listed = ["git", "-C", str(HERE), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    ):
        if name and (HERE / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, target / name)


@contextlib.contextmanager
def mounted(root: Path, binds: list[Path]) -> Iterator[None]:
    """Give the root devices, processes, and the name service and folders of this machine."""
    for name in ("resolv.conf", "hosts"):
        shutil.copy2(f"/etc/{name}", root / "etc" / name)
    made = []
    try:
        for path in (Path("/proc"), Path("/dev"), *binds):
            target = root / str(path).lstrip("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            subprocess.run(["mount", "--bind", str(path), str(target)], check=True)
            made.append(target)
        yield
    finally:
        for target in reversed(made):
            subprocess.run(["umount", "--lazy", str(target)], check=False)


def main() -> int:
    """Run the steps of the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--arg", action="append", default=[], help="NAME=VALUE of an ARG")
    parser.add_argument("--bind", action="append", default=[], type=Path, help="a path to show")
    options = parser.parse_args()
    if os.geteuid() or shutil.which("chroot") is None:
        parser.error("chroot needs to be run as root")
    if not (options.root / "bin" / "sh").exists():
        parser.error(f"{options.root} has no system; make one with debootstrap")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that ROOT is unmounted
    given = dict(word.partition("=")[::2] for word in options.arg)
    return run(options.file, options.root.resolve(), given, options.bind)


if __name__ == "__main__":
    sys.exit(main())
