"""Events in the HDF5 format that SPINE reads, written by SPINE's own writer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from harness.errors import BadInput
from harness.events.event import Event, Label
from harness.files import Replacement

SHAPES = {
    Label.SHOWER: 0,
    Label.HIP: 1,
    Label.MIP: 1,
    Label.MICHEL: 2,
    Label.DELTA: 3,
    Label.LOW_ENERGY: 4,
    Label.TRACK: 1,
    Label.GHOST: 5,
}
"""Class here -> SPINE's: shower, track, Michel electron, delta ray, low energy, ghost."""

_SHAPE_OF_LABEL = np.array([SHAPES[label] for label in sorted(SHAPES)], dtype=np.float32)


class SpineWriter:
    """Writes events as products ``data`` and ``seg_label``: batch index, coordinates, one value.

    Parameters
    ----------
    path : Path
        The file; it is replaced.
    dim : int
        Spatial dimensions, which must be three.

    Raises
    ------
    BadInput
        If SPINE is not installed, or the events are projections.
    """

    def __init__(self, path: Path, dim: int) -> None:
        if dim != 3:
            raise BadInput("files for SPINE have three dimensions; leave out --plane")
        if importlib.util.find_spec("spine") is None:
            raise BadInput("SPINE's format is written by SPINE: pip install spine==1.4.3")
        from spine.io.write import HDF5Writer

        self._replacement = Replacement(path)
        part = str(self._replacement.part)
        self._writer = HDF5Writer(file_name=part, overwrite=True, format_version=2)
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._writer.finalize()  # the reader refuses files without this mark
        self._writer.close()
        if kind is None:
            self._replacement.commit()
        else:
            self._replacement.discard()

    def append(self, event: Event) -> None:
        """Write one event with SPINE's classes.

        Raises
        ------
        BadInput
            If a voxel has no class.
        """
        if Label.UNKNOWN in event.labels:
            raise BadInput(f"{event.name} has voxels without a label, which SPINE needs")
        coordinates = np.asarray(event.voxels, dtype=np.float32)
        zero = np.zeros((len(coordinates), 1), dtype=np.float32)

        def table(values: Any) -> np.ndarray[Any, Any]:
            column = np.asarray(values, dtype=np.float32).reshape(-1, 1)
            return np.concatenate([zero, coordinates, column], 1)

        shapes = _SHAPE_OF_LABEL[event.labels]
        entry = {"data": table(event.energies), "seg_label": table(shapes)}
        self._writer({"index": self._count} | entry, {"origin": "sscn-bench"})
        self._count += 1
