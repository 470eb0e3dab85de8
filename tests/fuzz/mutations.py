"""Mutations of bytes, of JSON, of zip archives and of HDF5 files."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    10**30,
    1.5,
    -1e300,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\u001b[31m",
    "../../x",
    "n" * 5000,
    [],
    {},
    [[]],
    {"a": {}},
    [1, "a", None],
)
"""Values of every type and size that take the place of others in JSON."""


def pick(rng: Rng, choices: Any) -> Any:
    """Return one of some choices."""
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def mutate_bytes(content: bytes, rng: Rng) -> bytes:
    """Change, cut, repeat or insert bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(data))) if data else 0
        length = int(rng.integers(1, 64))
        kind = int(rng.integers(6))
        if kind == 0 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            number = pick(rng, (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF))
            size = pick(rng, (4, 8))
            order = pick(rng, ("little", "big"))
            data[place : place + size] = (number & (256**size - 1)).to_bytes(size, order)
    return bytes(data)


def mutate_json(value: Any, rng: Rng) -> Any:
    """Replace, remove or add one element anywhere in a JSON value."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(holder: Any) -> None:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                visit(holder[key])

    if isinstance(value, dict | list):
        visit(value)
    if not places or rng.random() < 0.02:
        return pick(rng, VALUES)
    holder, key = pick(rng, places)
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, list):
        holder.extend(holder[:50])
    else:
        holder[key] = copy.deepcopy(pick(rng, VALUES))
    return value


def mutate_hdf5(path: Path, rng: Rng) -> None:
    """Change an attribute, or the values, type, shape or place of a data set."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        attributes = list(file.attrs)
        if attributes and rng.random() < 0.3:
            name = pick(rng, attributes)
            if rng.random() < 0.2:
                del file.attrs[name]
            else:
                value = pick(rng, (0, -1, 3, 2**40, 1.5, np.nan, "text", [1, 2], b"\xff"))
                file.attrs[name] = value
            return
        name = pick(rng, names)
        if rng.random() < 0.1 or not isinstance(file[name], h5py.Dataset):
            _replace_object(file, name, rng)
        elif rng.random() < 0.6 and file[name].size:
            _change_values(file[name], rng)
        else:
            _change_form(file, name, rng)


def _replace_object(file: h5py.File, name: str, rng: Rng) -> None:
    kind = int(rng.integers(4))
    del file[name]
    if kind == 0:
        file.create_group(name)
    elif kind == 1:
        file[name] = h5py.SoftLink("/elsewhere")
    elif kind == 2:
        file[name] = h5py.ExternalLink("/etc/hostname", name)


def _change_values(dataset: h5py.Dataset, rng: Rng) -> None:
    values = dataset[:]
    row = int(rng.integers(len(values)))
    if values.dtype.names:
        field = pick(rng, values.dtype.names)
        values[field][row] = _number(values.dtype[field].base, rng)
    elif values.dtype == object:
        numbers = np.array(values[row])
        if len(numbers) and rng.random() < 0.7:
            numbers[int(rng.integers(len(numbers)))] = _number(numbers.dtype, rng)
        else:
            numbers = numbers[: int(rng.integers(len(numbers) + 1))]
        dataset[row] = numbers
        return
    else:
        values[row] = _number(values.dtype, rng)
    dataset[...] = values


def _number(dtype: np.dtype[Any], rng: Rng) -> Any:
    if dtype.kind == "f":
        return pick(rng, (0, -1, 0.5, 5, 1e30, np.nan, np.inf))
    information = np.iinfo(dtype)
    choices = (0, 1, 2, 5, 31, 32, 33, information.max, information.min, information.max // 2)
    return np.array(pick(rng, choices)).astype(dtype)


def _change_form(file: h5py.File, name: str, rng: Rng) -> None:
    values = file[name][:]
    kind = int(rng.integers(5))
    del file[name]
    if kind == 0:
        values = values[: int(rng.integers(len(values) + 1))]
    elif kind == 1:
        values = np.concatenate([values, values[:3]])
    elif kind == 2 and values.dtype != object:
        values = values.reshape(*values.shape, 1)
    elif kind == 3 and values.dtype != object:
        values = np.zeros(values.shape, pick(rng, ("S3", "f8", "i1", "u8", "c8")))
    elif kind == 4:
        file.create_dataset(name, (1 << 45,), "u8", chunks=True, compression="gzip")
        return
    if values.dtype == object:
        base = np.asarray(values[0]).dtype if len(values) else np.float32
        made = file.create_dataset(name, values.shape, h5py.vlen_dtype(base))
        for row, numbers in enumerate(values):
            made[row] = numbers
    else:
        file[name] = values


def mutate_zip(content: bytes, rng: Rng) -> bytes:
    """Change, drop, rename or repeat a member of a zip archive, whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    number = int(rng.integers(len(members)))
    name, data = members[number]
    kind = rng.random()
    if kind < 0.7:
        members[number] = name, mutate_bytes(data, rng)
    elif kind < 0.8:
        del members[number]
    elif kind < 0.9:
        members[number] = pick(rng, ("x", "../x", name + "x")), data
    else:
        members.append(members[number])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()
