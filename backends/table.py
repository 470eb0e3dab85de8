"""Table of the engines that run on this machine, and the reasons why the others do not."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from backends.capabilities import Capabilities
from backends.registry import Availability

INSTALL = {
    "spconv": "engines install spconv, on a CUDA host with --cuda 12.6",
    "minkowski": "engines install minkowski, or make minkowski",
    "sparseconvnet": "engines install sparseconvnet, from its repository",
    "torchsparse": "engines install torchsparse, from its repository",
    "ocnn": "engines install ocnn, or pip install --no-deps ocnn",
    "spconv-triton": "engines install spconv-triton, on a CUDA host",
    "warpconvnet": "engines install warpconvnet: its source distribution, on a CUDA host",
    "fvdb": "engines install fvdb: its source distribution, on a CUDA host",
    "torch-lattice": "engines install torch-lattice, with Python 3.14 on a CUDA host",
    "flex-gemm": "engines install flex-gemm, from its repository, on a CUDA or ROCm host",
    "spira": "engines install spira, from its repository, on a CUDA host",
}
"""How to install an engine that is not available."""


def engines_table(answers: Iterable[Availability]) -> Table:
    """Return a table of the capabilities of the available engines, in the given order."""
    table = Table("engine", "devices and precisions", "supports", "options and notes")
    for found in answers:
        can = found.capabilities
        if can is None:
            continue
        dims = ", ".join(f"{dim}D" for dim in can.dims)
        table.add_row(
            f"{found.name}\n{can.version}",
            "\n".join(_where(can)) or "–",
            f"{dims}\n" + ("inference\ntraining" if can.training else "inference"),
            escape("\n".join(_notes(can))),
        )
    return table


def absences(answers: Iterable[Availability]) -> list[str]:
    """Return a line per unavailable engine: the reason, and how to install it."""
    lines = []
    for found in answers:
        if found.capabilities is None:
            how = INSTALL.get(found.name)
            lines.append(f"{found.name}: {found.reason}" + (f" ({how})" if how else ""))
    return lines


def _where(can: Capabilities) -> list[str]:
    return [f"{device}: {', '.join(can.precisions.get(device, ()))}" for device in can.devices]


def _notes(can: Capabilities) -> list[str]:
    notes = [f"lacks {can.missing}"] if can.missing else []
    notes += [f"{option}: {', '.join(values)}" for option, values in can.options.items()]
    return [*notes, can.note] if can.note else notes
