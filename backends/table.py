"""The table of engines: what can run here, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from backends.capabilities import Capabilities
from backends.registry import Availability

INSTALL = {
    "spconv": "pip install 'sscn-bench[spconv]'; on a CUDA host [spconv-cu126] or its like",
    "minkowski": "make minkowski",
    "sparseconvnet": "from github.com/facebookresearch/SparseConvNet",
    "torchsparse": "from github.com/mit-han-lab/torchsparse",
    "ocnn": "pip install --no-deps ocnn",
    "spconv-triton": "pip install spconv-triton, on a CUDA host",
    "warpconvnet": "from its source distribution, on a CUDA host",
    "fvdb": "fvdb-core from its source distribution, on a CUDA host",
    "torch-lattice": "pip install torch-lattice, with Python 3.14 on a CUDA host",
}
"""How an engine that is absent gets here."""


def engines_table(answers: Iterable[Availability]) -> Table:
    """Lay out the answers of all probes, in their order."""
    table = Table(
        "engine", "version", "devices and precisions", "dims", "does", "options and notes"
    )
    for found in answers:
        can = found.capabilities
        if can is None:
            how = INSTALL.get(found.name)
            words = f"[yellow]{escape(found.reason)}[/yellow]" + (f"\n{escape(how)}" if how else "")
            table.add_row(found.name, "–", "–", "–", "–", words)
            continue
        table.add_row(
            found.name,
            can.version,
            "\n".join(_where(can)) or "–",
            ", ".join(f"{dim}D" for dim in can.dims),
            "inference\ntraining" if can.training else "inference",
            escape("\n".join(_notes(can))),
        )
    return table


def _where(can: Capabilities) -> list[str]:
    return [f"{device}: {', '.join(can.precisions.get(device, ()))}" for device in can.devices]


def _notes(can: Capabilities) -> list[str]:
    notes = [f"lacks {can.missing}"] if can.missing else []
    notes += [f"{option}: {', '.join(values)}" for option, values in can.options.items()]
    return [*notes, can.note] if can.note else notes
