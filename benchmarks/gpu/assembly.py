"""Instructions, spills and shared memory of compiled kernels, from the tools inside Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton.backends.nvidia

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


class Assembly(NamedTuple):
    """One compiled kernel.

    Attributes
    ----------
    loop : int
        Instructions of its longest loop that multiplies: those of one step for each warp.
    barriers : int
        Barriers in that loop.
    spills : int
        Instructions that read or write spilled registers.
    shared : int
        Bytes of shared memory of a block.
    """

    loop: int
    barriers: int
    spills: int
    shared: int


def read(compiled: Any) -> Assembly:
    """Disassemble a kernel that Triton has compiled for an NVIDIA GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    instructions, loops = _parse(text)
    opcodes = Counter(instructions)
    longest = max(loops, key=len, default=[])
    return Assembly(
        len(longest), longest.count("BAR"), opcodes["LDL"] + opcodes["STL"],
        compiled.metadata.shared,
    )  # fmt: skip


def _parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Return the opcodes of a listing, and those of each loop that multiplies."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)[^;]*;", line):
            instructions.append(found[1])
            target = re.search(r"BRA.*?(\.L_\w+)", line)
            if target and target[1] in labels:
                loop = instructions[labels[target[1]] :]
                if {"FFMA", "HMMA", "HGMMA"} & set(loop):
                    loops.append(loop)
    return instructions, loops
