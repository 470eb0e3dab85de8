"""Distribution of groups of cells over devices and machines with Dask.

One Dask worker per device starts the same worker processes as a local run, so that a cell that dies
does not end its Dask worker. Cells that answer the same question are measured on one device. On
Slurm::

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(
        cores=1, processes=1, memory="32GB", walltime="02:00:00",
        job_extra_directives=["--gres=gpu:1", "--cpus-per-task=8"],
        worker_extra_args=["--resources", "device=1"],
    )
    cluster.scale(jobs=8)
    print(cluster.scheduler_address)      # python -m harness run inference --dask THIS

All machines need the same paths: a shared file system with the environment and the repository.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import BadInput, missing_packages
from harness.instruments import machine
from harness.results.record import Entries
from harness.run.resume import Machines, this_machine
from harness.run.rounds import Executor, MeasuredEntries
from harness.run.task import Task
from harness.run.turns import MEMORY_SHARE, measure_in_turns

DEVICE = "SSCN_BENCH_DEVICE"
"""Environment variable of a local Dask worker: its processors and share of the memory, as JSON."""

RESOURCE = {"device": 1}

WORKER_SECONDS = 60
"""Time for the first Dask worker to start before a resumed run."""


def dask_executor(address: str) -> Executor:
    """Return an executor that measures on a Dask cluster.

    Parameters
    ----------
    address : str
        Address of a scheduler, or ``local:N`` to start N workers here, one per device.

    Raises
    ------
    BadInput
        If dask.distributed is missing or the address is malformed.
    """
    try:
        import distributed
    except ImportError:
        raise missing_packages("dask.distributed", "dask") from None
    library: Any = distributed  # without types
    kind, _, count = address.partition(":")
    if kind == "local" and not (count.isdecimal() and int(count)):
        raise BadInput(f"{address!r} does not say how many devices; write local:2, for example")

    def execute(groups: Sequence[Sequence[Task]], seed: int, listener: Any) -> MeasuredEntries:
        device = groups[0][0].job.cell.device if groups else "cpu"
        with contextlib.ExitStack() as stack:
            where: Any = address
            if kind == "local":
                where = stack.enter_context(local_cluster(int(count), device))
            client = stack.enter_context(_connect(library, address, where))
            yield from spread(client, groups, seed, listener)

    return execute


def _connect(library: Any, address: str, where: Any) -> Any:
    """Return a client of a scheduler."""
    try:
        return library.Client(where, timeout="20s")
    except (OSError, ValueError, TypeError, ImportError):
        raise BadInput(f"there is no Dask scheduler at {address}") from None


def dask_machines(address: str) -> Machines:
    """Return a function that describes the machines of a Dask cluster, one entry per Dask worker.

    Parameters
    ----------
    address : str
        As for ``dask_executor``.
    """
    kind, _, count = address.partition(":")

    def local(device: str, threads: int) -> list[dict[str, Any]]:
        processors = sorted(os.sched_getaffinity(0))
        return [
            described_machine(device, threads, environment(i, int(count), device, processors))
            for i in range(int(count))
        ]

    def remote(device: str, threads: int) -> list[dict[str, Any]]:
        import distributed

        library: Any = distributed  # without types
        with _connect(library, address, address) as client:
            try:
                client.wait_for_workers(1, timeout=WORKER_SECONDS)
            except (TimeoutError, OSError):
                raise BadInput(
                    f"the scheduler at {address} has no worker; start one to resume the run"
                ) from None
            return list(client.run(described_machine, device, threads).values())

    return local if kind == "local" else remote


def described_machine(
    device: str, threads: int, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the facts that records hold of the device of a Dask worker.

    Parameters
    ----------
    device, threads
        As for ``harness.run.resume.this_machine``.
    variables : mapping, optional
        Environment variables that assign the device; by default those of this process.
    """
    variables = os.environ if variables is None else variables
    (found,) = this_machine(device, threads, variables)
    processors = json.loads(variables.get(DEVICE, "{}")).get("processors")
    if processors and device == "cpu":
        found |= {"affinity": processors, "threads": threads or len(processors)}
    return found


def spread(
    client: Any, groups: Sequence[Sequence[Task]], seed: int, listener: Any
) -> MeasuredEntries:
    """Measure groups on a cluster, one group per device at a time.

    A group whose Dask worker dies is tried once more, cell by cell. A cell whose Dask worker dies
    again is recorded as crashed.

    Parameters
    ----------
    client : distributed.Client
        Client of a cluster whose workers have the resource ``device``.
    groups, seed, listener
        As for a local run.
    """
    import distributed

    library: Any = distributed  # without types

    def submit(group: Sequence[Task]) -> Any:
        return client.submit(measure_group, list(group), seed, resources=RESOURCE, pure=False)

    listener.say(f"Dask: {len(groups)} groups of cells on {client.scheduler.address}")
    pending = {submit(group): (list(group), 1) for group in groups}
    queue = library.as_completed(pending)
    for future in queue:
        group, attempt = pending.pop(future)
        if future.status == "finished":
            for index, entries in future.result():
                yield group[index], entries
            continue
        error = future.exception()
        if isinstance(error, BadInput):  # the machine fails, whatever is measured
            raise error
        if attempt == 1:
            for task in group:
                again = submit([task])
                pending[again] = ([task], 2)
                queue.add(again)
            continue
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"its Dask worker failed twice: {type(error).__name__}: {first}"
        for task in group:
            yield task, {"outcome": "crashed", "reason": reason}


class _Silent:
    """A listener without output: progress is shown where the run was started."""

    def sampled(self, task: Task, samples: Sequence[float]) -> None:
        """Ignore the samples."""


def measure_group(group: Sequence[Task], seed: int) -> list[tuple[int, Entries]]:
    """Measure a group on the device of this Dask worker.

    Returns
    -------
    list of (int, dict)
        The position of each task in the group, and the entries of its record.
    """
    # Dask's nanny sets this for its children; it would change the engines' allocator.
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    here = [_adapted(task, json.loads(os.environ.get(DEVICE, "{}"))) for task in group]
    position = {id(task): index for index, task in enumerate(here)}
    names = {(task.source, task.job.cell): position[id(task)] for task in here}
    found = measure_in_turns(here, seed + group[0].round, _Silent())
    return [(names[task.source, task.job.cell], entries) for task, entries in found]


def _adapted(task: Task, device: Mapping[str, Any]) -> Task:
    """Adapt a task to this machine: the folder of references, and the device's processors."""
    job = task.job
    if job.references and not Path(job.references).is_dir():
        job = replace(job, references="")
    if device and job.cell.device == "cpu":
        available = MEMORY_SHARE * machine.available_bytes()
        job = replace(
            job,
            processors=tuple(device["processors"]),
            memory_bytes=int(available * device["share"]),
        )
    return replace(task, job=job)


@contextlib.contextmanager
def local_cluster(count: int, device: str) -> Iterator[Any]:
    """Start one Dask worker for each device of this machine.

    On the CPU a device is an equal share of the processors; with CUDA it is one GPU.

    Parameters
    ----------
    count : int
        Number of devices.
    device : str
        ``cpu`` or ``cuda``.
    """
    import distributed
    from dask import config

    library: Any = distributed  # without types

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # this module repeats what failed
        "distributed.worker.profile.enabled": False,
        "distributed.worker.memory.terminate": False,
    }
    with config.set(settings):
        workers = {
            number: {
                "cls": distributed.Nanny,
                "options": {
                    "nthreads": 1,
                    "resources": RESOURCE,
                    "host": "127.0.0.1",
                    "dashboard": False,
                    "env": environment(number, count, device, sorted(os.sched_getaffinity(0))),
                },
            }
            for number in range(count)
        }
        scheduler = {
            "cls": distributed.Scheduler,
            "options": {"host": "127.0.0.1", "port": 0, "dashboard": False},
        }
        with library.SpecCluster(workers, scheduler) as cluster:
            yield cluster


def environment(number: int, count: int, device: str, processors: Sequence[int]) -> dict[str, str]:
    """Return the environment variables that assign a device to a local Dask worker.

    Raises
    ------
    BadInput
        If there are more devices than processors.
    """
    if device == "cuda":
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = visible or [str(each) for each in range(count)]
        if number >= len(names):
            raise BadInput(f"only {len(names)} GPUs are visible; ask for local:{len(names)}")
        return {"CUDA_VISIBLE_DEVICES": names[number]}
    if count > len(processors):
        raise BadInput(
            f"{count} devices do not fit on {len(processors)} processors; ask for "
            f"local:{len(processors)} or fewer"
        )
    own = processors[number * len(processors) // count : (number + 1) * len(processors) // count]
    return {DEVICE: json.dumps({"processors": list(own), "share": 1 / count})}
