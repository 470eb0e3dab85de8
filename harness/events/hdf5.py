"""Checked access to the data sets of HDF5 files that come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from harness.errors import BadInput

MOST_ROWS = 1 << 24
"""Most voxels that one event may have; a file that declares more is damaged."""


def checked_dataset(
    group: h5py.Group,
    name: str,
    source: str,
    *,
    kinds: str = "",
    columns: int | None = None,
    fields: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> h5py.Dataset:
    """Return a data set of a group after a check of its type and shape.

    Parameters
    ----------
    group : h5py.Group
        File or group.
    name : str
        One name, no path.
    source : str
        The file, for the messages.
    kinds : str
        The kinds of number that are accepted, as in ``numpy.dtype.kind``; empty for a table.
    columns : int, optional
        Length of the second axis; without it the data set has one axis.
    fields : mapping, optional
        Of a table: for each field the accepted kinds and the shape of an element.

    Raises
    ------
    BadInput
        If it is missing, refers to another file, or has another type or shape.
    """
    where = f"{source}: {group.name.strip('/')}/{name}".replace(": /", ": ")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise BadInput(f"{where} is missing or a link; write the file anew")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise BadInput(f"{where} is no data set; write the file anew")
    if found.is_virtual or found.external:
        raise BadInput(f"{where} refers to other files; write its content into this one")
    shape = found.shape
    if shape is None or len(shape) != (1 if columns is None else 2):
        raise BadInput(f"{where} has shape {shape}; write the file anew")
    if columns is not None and shape[1] != columns:
        raise BadInput(f"{where} has {shape[1]} columns where {columns} are needed")
    if fields is None and found.dtype.kind not in kinds:
        raise BadInput(f"{where} has type {found.dtype}; write the file anew")
    for field, (accepted, element) in (fields or {}).items():
        if field not in (found.dtype.names or ()):
            raise BadInput(f"{where} has no field {field}; write the file anew")
        dtype = found.dtype[field]
        if dtype.base.kind not in accepted or dtype.shape != element:
            raise BadInput(f"{where} has type {dtype} in field {field}; write the file anew")
    return found


def checked_group(parent: h5py.Group, name: str, source: str) -> h5py.Group:
    """Return a group of a file or group.

    Raises
    ------
    BadInput
        If it is missing, a link, or a data set.
    """
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink) or not isinstance(
        found := parent[name], h5py.Group
    ):
        raise BadInput(f"{source}: {name} is no group of the file; write the file anew")
    return found


def whole_number(value: Any, what: str, least: int, most: int) -> int:
    """Return an attribute as an integer.

    Raises
    ------
    BadInput
        If it is no integer between ``least`` and ``most``.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise BadInput(f"{what} is no whole number; make the file again")
    if not least <= value <= most:
        raise BadInput(f"{what} is {value}, which is not within {least} to {most}")
    return int(value)
