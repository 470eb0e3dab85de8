"""Resumption of a run: the cells that a file of records holds, if the conditions are the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.run.plan import Availability
from harness.run.source import EngineSource
from harness.spec.cell import Cell

GIB = 2**30


def recorded_cells(
    out: Path,
    source: EngineSource,
    found: Mapping[str, Availability],
    *,
    threads: int,
    budget: float,
    local: bool,
    python: Callable[[str], str],
) -> tuple[set[tuple[str, int]], str | None, int | None]:
    """Return the cells and rounds of a file of records, after checking that it can be continued.

    Parameters
    ----------
    out : Path
        The file; it need not exist.
    source : EngineSource
        The engines to measure now.
    found : mapping
        Name of an engine -> its availability.
    threads : int
        Threads of each worker; 0 for one per processor.
    budget : float
        Longest sampling per cell and round, in seconds.
    local : bool
        Whether this machine measures; otherwise the machine is not compared.
    python : callable
        Returns the interpreter of an engine.

    Returns
    -------
    done : set of (str, int)
        Names of cells, and their rounds.
    run : str or None
        Identity of the run; None without records.
    seed : int or None
        Seed of the run; None without records.

    Raises
    ------
    BadInput
        If the commit, uncommitted changes, the machine, its threads, a version or the budget
        differs.
    """
    done: set[tuple[str, int]] = set()
    run, seed = None, None
    for record in store.records([out]) if out.exists() else ():
        cell = Cell.from_json(record["cell"])
        current = _current(source, cell, found, threads, budget, local, python(cell.backend))
        for name, recorded, now in _pairs(record, current):
            if recorded != now:
                raise BadInput(
                    f"{out} was measured with {name} {_text(recorded)}, this run has "
                    f"{_text(now)}; start a new run"
                )
        run, seed = record["run"], record.get("seed")
        done.add((cell.name, record.get("round", 0)))
    return done, run, seed


def _current(
    source: EngineSource,
    cell: Cell,
    found: Mapping[str, Availability],
    threads: int,
    budget: float,
    local: bool,
    python: str,
) -> dict[str, Any]:
    """Return what a record of a cell would hold now, by the paths of its fields."""
    current: dict[str, Any] = {
        "commit": source.commit,
        "dirty": source.dirty,
        "budget_seconds": budget,
    }
    if local:
        allowed = sorted(os.sched_getaffinity(0))
        facts = machine.facts() | {"threads": threads or len(allowed), "affinity": allowed}
        names = ("processor", "cores", "memory_bytes", "threads", "affinity")
        current |= {f"machine.{name}": facts[name] for name in names}
        if cell.device == "cuda":
            current |= {f"machine.{name}": value for name, value in _gpu().items()}
    versions: dict[str, Any] = machine.versions() if python == sys.executable else {}
    capabilities = found[cell.backend].capabilities if cell.backend in found else None
    if capabilities is not None:
        versions[cell.backend] = capabilities.version
    return current | {f"versions.{name}": value for name, value in versions.items()}


def _gpu() -> dict[str, Any]:
    from harness.instruments import gpu

    try:
        nvml = gpu.open_nvml()
        facts = gpu.device_facts(nvml, gpu.find_device(nvml, os.environ, None))
    except gpu.NoGpu:
        return {}
    return {name: facts[name] for name in ("gpu", "driver", "ecc", "mig")}


def _pairs(record: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the recorded and the current value of each fact that both have."""
    for path, now in current.items():
        head, _, tail = path.partition(".")
        recorded = (record.get(head) or {}).get(tail) if tail else record.get(head)
        if recorded is None or now is None:
            continue
        name = {"dirty": "uncommitted changes:", "budget_seconds": "a budget of"}.get(path, path)
        name = name.removeprefix("machine.").removeprefix("versions.")
        if name == "memory_bytes":
            # The kernel reserves a little more or less of it after each start.
            name, recorded, now = "memory (GiB)", round(recorded / GIB, 1), round(now / GIB, 1)
        yield name, recorded, now


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:12] if isinstance(value, str) and len(value) == 40 else str(value) or "none"
