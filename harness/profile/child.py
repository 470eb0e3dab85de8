"""Process that profiles one cell: it reads a request as a line of JSON and writes a profile.

The memory of the CPU is profiled by a separate request in a second process, because there the C
library must return freed memory from the start.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.child_process import die_with_parent, private_output
from harness.instruments.allocator import keep_freed_memory
from harness.profile import memory
from harness.profile.cell_profiler import CellProfiler, Settings
from harness.run.failures import classify
from harness.run.job import Job


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Execute a request and return the answer, or the reason why it failed.

    Parameters
    ----------
    request : mapping
        ``job``, ``settings``, and, to profile only the memory of the CPU, ``resident``: bytes
        before a call and at its peak.
    """
    try:
        resident = request.get("resident")
        if resident is not None:
            memory.return_freed_memory()
        else:
            keep_freed_memory()  # as in the workers of a run
        profiler = CellProfiler(Job.from_json(request["job"]), Settings(**request["settings"]))
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
