"""The worker process: commands and answers as lines of JSON on two channels.

``prepare`` builds the network, measures memory, compares the results with the reference and warms
up. ``sample`` takes times for a given duration; it may be sent any number of times, so that several
workers can take turns. ``finish`` returns the entries of the record. Whatever an engine prints goes
to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from harness.child_process import die_with_parent, private_output
from harness.errors import BadInput, MachineFailure
from harness.instruments.allocator import keep_freed_memory
from harness.run import sampling
from harness.run.cell_measurement import CellMeasurement
from harness.run.failures import classify
from harness.run.job import Job


def answers(commands: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the answer to each command until ``finish`` is answered or anything fails.

    An answer to ``prepare`` or ``sample`` holds the times. An answer with an ``outcome``, or with a
    ``machine_failure``, is the last one. Before the engine runs, an extra answer holds the
    ``partial`` record, which remains if the worker dies afterwards.
    """
    measurement: CellMeasurement | None = None
    try:
        for command in commands:
            if command["do"] == "prepare":
                measurement = CellMeasurement(Job.from_json(command["job"]))
                measurement.load()
                yield {"partial": dict(measurement.record)}
                measurement.prepare()
                yield {"ready": True, "record": measurement.record}
            elif measurement is None:
                raise BadInput("the first command must be 'prepare'")
            elif command["do"] == "sample":
                host, device = measurement.sample(command["seconds"])
                yield {"host": host, "device": device}
            else:
                yield {"outcome": "ok", "reason": "", "record": measurement.finish()}
                return
    except MachineFailure as error:
        yield {"machine_failure": str(error)}
    except (Exception, SystemExit) as error:
        failed = classify(error)
        record = {} if measurement is None else measurement.record
        reason = failed.reason
        limit = record.get("memory", {}).get("limit_bytes")
        if failed.outcome == "out-of-memory" and limit:
            reason += f" (the worker's data was bound to {limit / 1e9:.3g} GB)"
        yield {"outcome": failed.outcome, "reason": reason, "record": record}


def measure_cell(job: Job) -> dict[str, Any]:
    """Measure one cell in this process, and return the entries of its record."""
    host: list[float] = []
    stop: sampling.Stop | None = None
    pending: list[dict[str, Any]] = [{"do": "prepare", "job": job.to_json()}]

    def commands() -> Iterator[dict[str, Any]]:
        while pending:
            yield pending.pop(0)

    start = 0.0
    for answer in answers(commands()):
        if "machine_failure" in answer:
            raise MachineFailure(answer["machine_failure"])
        if "partial" in answer:
            continue
        if "outcome" in answer:
            record: dict[str, Any] = answer["record"]
            ending = {"outcome": answer["outcome"], "reason": answer["reason"], "stop": stop}
            return record | ending
        if "ready" in answer:
            start = time.perf_counter()
        host += answer.get("host", [])
        once = job.cell.map == "first" and bool(host)
        elapsed = time.perf_counter() - start
        stop = "samples" if once else sampling.stop_reason(host, elapsed, job.rule)
        pending.append(
            {"do": "finish"} if stop else {"do": "sample", "seconds": sampling.TURN_SECONDS}
        )
    raise AssertionError("a worker's last answer has an outcome")


def serve(commands: IO[str], channel: IO[str]) -> None:
    """Answer commands, one per line of JSON, until the last answer is written."""
    for answer in answers(json.loads(line) for line in commands):
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def main() -> None:
    """Serve on the two channels whose file descriptors are the arguments."""
    die_with_parent()
    keep_freed_memory()
    private_output().close()
    with os.fdopen(int(sys.argv[1])) as commands, os.fdopen(int(sys.argv[2]), "w") as channel:
        serve(commands, channel)


if __name__ == "__main__":
    main()
