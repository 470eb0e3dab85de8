"""The machine, the versions and the commit of a record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def commit(root: Path = ROOT) -> tuple[str, bool]:
    """Return the commit of this code, and whether tracked files differ from it.

    Outside a repository the commit is empty and the code counts as dirty.
    """
    try:
        inside = git(root, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(inside[0]).resolve() != root.resolve():
            return "", True  # an installed package inside somebody else's repository
        changed = git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "", True
    return inside[1], bool(changed.strip())


def git(root: Path, *words: str) -> str:
    """Return what a command of git prints in a repository."""
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    ).stdout


def facts() -> dict[str, Any]:
    """Return the constant properties of the machine: processor, memory, system."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor as the kernel reports it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(distributions: tuple[str, ...] = ("torch", "numpy")) -> dict[str, str]:
    """Return the versions of Python, this package and some distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in ("sscn-bench", *distributions):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class StolenTime:
    """Processor time that the host of a virtual machine gave to others while this one had work.

    The count starts when the object is made.

    Parameters
    ----------
    stat : Path
        The kernel's counters of processor time, in ticks.
    now : callable
        Clock, in seconds.
    """

    def __init__(
        self, stat: Path = Path("/proc/stat"), now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stat, self._now = stat, now
        self._since, self._ticks = now(), self._read()

    def share(self) -> float | None:
        """Return the stolen share of all processors' time; None where it is not counted."""
        ticks, seconds = self._read(), self._now() - self._since
        if ticks is None or self._ticks is None or seconds <= 0:
            return None
        stolen = (ticks - self._ticks) / os.sysconf("SC_CLK_TCK")
        return min(stolen / seconds / (os.cpu_count() or 1), 1.0)

    def _read(self) -> int | None:
        try:
            first = self._stat.read_text().partition("\n")[0].split()
            return int(first[8])  # cpu user nice system idle iowait irq softirq steal
        except (OSError, IndexError, ValueError):
            return None


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the memory that is available without swapping, in bytes."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{meminfo} does not report the available memory")
