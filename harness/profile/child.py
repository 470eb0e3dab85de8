"""Process that profiles one cell: it reads an order as a line of JSON and writes a profile.

The memory of the CPU is profiled by an order of its own, in a second process, because the C library
has to return freed memory there from the start.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.child_process import die_with_parent, private_output
from harness.profile import memory
from harness.profile.cell_profiler import CellProfiler, Settings
from harness.run.failures import classify
from harness.run.job import Job


def answer(order: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out an order and return the answer, or the reason for which it failed.

    Parameters
    ----------
    order : mapping
        ``job``, ``settings``, and ``resident`` (bytes before a call and at its peak) where only
        the memory of the CPU shall be profiled.
    """
    try:
        resident = order.get("resident")
        if resident is not None:
            memory.return_freed_memory()
        profiler = CellProfiler(Job.from_json(order["job"]), Settings(**order["settings"]))
        if resident is not None:
            found = profiler.profile_memory(*resident)
            return {"outcome": "ok", "memory": asdict(found)}
        profile, resident = profiler.profile()
        return {"outcome": "ok", "profile": profile.to_json(), "resident": resident}
    except (Exception, SystemExit) as error:
        failed = classify(error)
        if failed.outcome == "crashed":
            import traceback

            traceback.print_exc()
        return {"outcome": failed.outcome, "reason": failed.reason}


if __name__ == "__main__":
    die_with_parent()
    private_output().close()
    with os.fdopen(int(sys.argv[1])) as orders, os.fdopen(int(sys.argv[2]), "w") as replies:
        replies.write(json.dumps(answer(json.loads(orders.readline()))) + "\n")
