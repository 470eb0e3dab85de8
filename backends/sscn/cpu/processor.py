"""The compiled module, with the processor's instruction set chosen.

``SSCN_INSTRUCTION_SET`` (avx512_bf16, avx512, avx2 or portable) in the environment overrides the
choice, which is otherwise the fastest one that the processor has.
"""

from __future__ import annotations

import os

from backends.sscn.cpu import _kernels
from backends.sscn.cpu.encoding import fingerprint

if getattr(_kernels, "fingerprint", None) != fingerprint():
    raise ImportError(
        "the compiled kernels are of another version than the Python code; compile them again with "
        "`pip install -e .`, or use kernels=reference"
    )

from backends.sscn.cpu._kernels import (
    LaunchedPass,
    LaunchPlan,
    Plan,
    PlannedPass,
    block_rows,
    instruction_set,
    instruction_sets,
    peak,
    run,
    use,
)

__all__ = [
    "LaunchPlan",
    "LaunchedPass",
    "Plan",
    "PlannedPass",
    "block_rows",
    "instruction_set",
    "instruction_sets",
    "peak",
    "run",
    "use",
]

if "SSCN_INSTRUCTION_SET" in os.environ:
    use(os.environ["SSCN_INSTRUCTION_SET"])
