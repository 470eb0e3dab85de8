"""Resumption of a run: the cells that a file of records holds, if the conditions are the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.instruments import machine
from harness.results import store
from harness.run.plan import Availability
from harness.run.source import EngineSource
from harness.spec.cell import Cell

GIB = 2**30

Machines = Callable[[str, int], Sequence[Mapping[str, Any]]]
"""Returns the facts of each machine that may measure, for a device and a number of threads."""


def recorded_cells(
    out: Path,
    source: EngineSource,
    found: Mapping[str, Availability],
    *,
    threads: int,
    budget: float,
    machines: Machines,
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
    machines : callable
        The machines that may measure; each recorded machine has to be one of them.
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
    present: dict[str, Sequence[Mapping[str, Any]]] = {}
    for record in store.records([out]) if out.exists() else ():
        cell = Cell.from_json(record["cell"])
        if record.get("machine") and cell.device not in present:
            present[cell.device] = machines(cell.device, threads)
        own = _current(source, cell, found, budget, source.python or python(cell.backend))
        differences = [
            _differences(record, {**own, **{f"machine.{name}": v for name, v in each.items()}})
            for each in present.get(cell.device) or [{}]
        ]
        nearest = min(differences, key=len)
        if nearest:
            raise BadInput(f"{out} was measured with {nearest[0]}; start a new run")
        run, seed = record["run"], record.get("seed")
        done.add((cell.name, record.get("round", 0)))
    return done, run, seed


def _current(
    source: EngineSource,
    cell: Cell,
    found: Mapping[str, Availability],
    budget: float,
    python: str,
) -> dict[str, Any]:
    """Return what a record of a cell would hold now, by the paths of its fields."""
    versions: dict[str, Any] = machine.versions() if python == sys.executable else {}
    capabilities = found[cell.backend].capabilities if cell.backend in found else None
    if capabilities is not None:
        versions[cell.backend] = capabilities.version
    return {
        "commit": source.commit,
        "dirty": source.dirty,
        "environment": source.environment or None,
        "budget_seconds": budget,
        **{f"versions.{name}": value for name, value in versions.items()},
    }


def this_machine(
    device: str, threads: int, environment: Mapping[str, str] = os.environ
) -> list[dict[str, Any]]:
    """Return the facts that records of a device hold of this machine, as one entry.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        Threads of each worker; 0 for one per processor.
    environment : mapping
        Names the visible GPUs.
    """
    allowed = sorted(os.sched_getaffinity(0))
    facts = machine.facts()
    return [
        {name: facts[name] for name in ("processor", "cores", "memory_bytes")}
        | {"threads": threads or len(allowed), "affinity": allowed}
        | (_gpu(environment) if device == "cuda" else {})
    ]


def _gpu(environment: Mapping[str, str]) -> dict[str, Any]:
    from harness.instruments import gpu

    try:
        nvml = gpu.open_nvml()
        facts = gpu.device_facts(nvml, gpu.find_device(nvml, environment, None))
    except gpu.NoGpu:
        return {}
    return {name: facts[name] for name in ("gpu", "driver", "ecc", "mig")}


def _differences(record: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the facts that both have and that differ, in words."""
    return [
        f"{name} {_text(recorded)}, this run has {_text(now)}"
        for name, recorded, now in _pairs(record, current)
        if recorded != now
    ]


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
