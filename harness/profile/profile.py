"""A profile: the time and memory of one cell per layer; and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.errors import BadInput
from harness.spec.cell import Cell

SCHEMA = 1
T = TypeVar("T")
FILE = "profile.json"

DROPPED = ("counters", "notes")
"""Fields that earlier versions wrote; they are ignored."""

KINDS = (
    "map",
    "convolution",
    "normalisation",
    "join",
    "add",
    "linear",
    "loss",
    "optimiser",
    "input",
    "host",
)
"""Kinds of work.

``map`` is the construction of kernel maps; ``input`` the construction and reordering of the
engine's tensor; ``host`` the time between layers, spent by the network and the autograd engine. If
an engine fuses operations, their time counts for the kind of the layer that executes them.
"""

DIRECTIONS = ("forward", "backward", "step")
MEMORY_KINDS = (
    "activation",
    "gradient",
    "optimiser",
    "map",
    "workspace",
    "other",
)


@dataclass(frozen=True)
class LayerProfile:
    """Time and work of one layer in one direction, per pass.

    Attributes
    ----------
    name : str
        The module's path in the network, or ``input``, ``loss``, ``optimiser``, ``host``.
    level : int or None
        Number of strides above the finest level; that of the finer side for a strided or inverse
        convolution.
    kind : str
        One of ``KINDS``.
    direction : str
        One of ``DIRECTIONS``; ``step`` is the optimiser's.
    calls : int
        Number of calls.
    seconds : float
        Mean share over the middle half of the passes, times the cell's seconds. The sum over all
        layers is the whole time, including that of the ranges.
    bytes : int or None
        Least bytes to be read and written: rows, weights and map, once each.
    flops : int or None
        Least number of operations: pairs of the kernel map x C_in x C_out x 2.
    sites : int or None
        Rows of the output.
    """

    name: str
    level: int | None
    kind: str
    direction: str
    calls: int
    seconds: float
    bytes: int | None = None
    flops: int | None = None
    sites: int | None = None

    def __post_init__(self) -> None:
        _text("name", self.name)
        _one_of("kind", self.kind, KINDS)
        _one_of("direction", self.direction, DIRECTIONS)
        _count("calls", self.calls)
        _seconds("seconds", self.seconds)
        for name in ("level", "bytes", "flops", "sites"):
            value = getattr(self, name)
            if value is not None:
                _count(name, value)

    @property
    def key(self) -> tuple[str, str, str]:
        """Name, kind and direction, by which two profiles are compared."""
        return self.name, self.kind, self.direction


@dataclass(frozen=True)
class HeldMemory:
    """Bytes that a layer held at the peak of the memory.

    Attributes
    ----------
    name : str
        The layer.
    kind : str
        One of ``MEMORY_KINDS``.
    bytes : int
        At least one.
    """

    name: str
    kind: str
    bytes: int

    def __post_init__(self) -> None:
        _text("at_peak name", self.name)
        _one_of("at_peak kind", self.kind, MEMORY_KINDS)
        _count("at_peak bytes", self.bytes)


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of one call, by layer.

    Attributes
    ----------
    baseline : int
        Bytes before the call.
    peak : int
        Bytes at the peak, measured without ranges.
    explained : int
        Bytes over the baseline that are assigned to layers at the peak; compare with
        ``peak - baseline``.
    at_peak : tuple of HeldMemory
        In descending order.
    timeline : tuple of (float, int)
        Seconds since the call began, and bytes over the baseline.
    """

    baseline: int
    peak: int
    explained: int
    at_peak: tuple[HeldMemory, ...] = ()
    timeline: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("baseline", "peak", "explained"):
            _count(f"memory.{name}", getattr(self, name))
        for seconds, held in self.timeline:
            _seconds("memory.timeline", seconds)
            if isinstance(held, bool) or not isinstance(held, int):
                raise BadInput(f"memory.timeline has {held!r} where bytes must be")

    @property
    def share_explained(self) -> float:
        """Explained bytes as a share of the measured ones."""
        measured = self.peak - self.baseline
        return self.explained / measured if measured > 0 else math.nan


@dataclass(frozen=True)
class Profile:
    """One profiled cell.

    Attributes
    ----------
    cell : Cell
        The profiled cell.
    code : mapping
        ``commit`` and ``dirty``.
    machine, versions : mapping
        As in a record.
    seconds : float
        Median of the calls without instruments, which alternate with the instrumented ones.
    instrumented_seconds : float
        Median of the calls in which the layers were timed.
    layers : tuple of LayerProfile
        In the order of their first call.
    ceilings : mapping or None
        Limits of the machine in the format of ``harness.profile.ceilings``.
    memory : MemoryProfile or None
        Memory by layer.
    """

    cell: Cell
    code: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    seconds: float
    instrumented_seconds: float
    layers: tuple[LayerProfile, ...]
    ceilings: Mapping[str, Any] | None = None
    memory: MemoryProfile | None = None

    def __post_init__(self) -> None:
        _seconds("seconds", self.seconds)
        _seconds("instrumented_seconds", self.instrumented_seconds)
        keys = [layer.key for layer in self.layers]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadInput(f"the layer {' '.join(twice)} is listed twice")

    @property
    def total(self) -> float:
        """Seconds of all layers, including the time between them."""
        return math.fsum(layer.seconds for layer in self.layers)

    @property
    def layer_sum_ratio(self) -> float:
        """Sum of the layers over the cell's own time: about 1 if no time is missing."""
        return self.total / self.seconds if self.seconds else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        memory = None
        if self.memory is not None:
            memory = asdict(self.memory)
            memory["at_peak"] = [asdict(held) for held in self.memory.at_peak]
            memory["timeline"] = [list(point) for point in self.memory.timeline]
        return {
            "schema": SCHEMA,
            "cell": self.cell.to_json(),
            "code": dict(self.code),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "seconds": self.seconds,
            "instrumented_seconds": self.instrumented_seconds,
            "layers": [asdict(layer) for layer in self.layers],
            "ceilings": None if self.ceilings is None else dict(self.ceilings),
            "memory": memory,
        }

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Rebuild a profile.

        Raises
        ------
        BadInput
            If it is not a profile, has a newer schema, or a field is missing, unknown or invalid.
        """
        if not isinstance(values, Mapping):
            raise BadInput("a profile must be a JSON object")
        kept = dict(values)
        schema = kept.pop("schema", None)
        if schema != SCHEMA:
            raise BadInput(f"schema {schema!r} is unknown; this version reads schema {SCHEMA}")
        for name in DROPPED:
            kept.pop(name, None)
        _fields("a profile", kept, cls)
        kept["cell"] = Cell.from_json(kept["cell"])
        for name in ("code", "machine", "versions"):
            _object(name, kept[name])
        if kept.get("ceilings") is not None:
            _object("ceilings", kept["ceilings"])
        kept["layers"] = _parts("layers", kept["layers"], LayerProfile)
        if kept.get("memory") is not None:
            kept["memory"] = memory_from_json(kept["memory"])
        return cls(**kept)


def read_profile(path: Path) -> Profile:
    """Read a profile from its file, or from the folder that holds it.

    Raises
    ------
    BadInput
        With the file's name, if it cannot be read or is no profile.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return Profile.from_json(json.loads(file.read_text()))
    except OSError as error:
        raise BadInput(f"cannot read the profile {file}: {error.strerror}") from None
    except BadInput as error:
        raise BadInput(f"{file} is not a usable profile: {error}") from None
    except ValueError as error:
        raise BadInput(f"{file} is not a profile: {error}") from None


def write_profile(profile: Profile, folder: Path) -> Path:
    """Write a profile into a folder, and return its file.

    Raises
    ------
    BadInput
        If the folder cannot be written to.
    """
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(profile.to_json(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BadInput(
            f"cannot write the profile to {folder} ({error.strerror}); give another folder "
            f"with --out"
        ) from None
    return file


def memory_from_json(values: Any) -> MemoryProfile:
    """Rebuild the memory of a profile; raise ``BadInput`` if it is invalid."""
    kept = dict(_object("memory", values))
    _fields("memory", kept, MemoryProfile)
    kept["at_peak"] = _parts("memory.at_peak", kept.get("at_peak", []), HeldMemory)
    points = _list("memory.timeline", kept.get("timeline", []))
    if any(not isinstance(point, list) or len(point) != 2 for point in points):
        raise BadInput("memory.timeline must be a list of [seconds, bytes]")
    kept["timeline"] = tuple((point[0], point[1]) for point in points)
    return MemoryProfile(**kept)


def _parts(name: str, values: Any, kind: Callable[..., T]) -> tuple[T, ...]:
    found = []
    for value in _list(name, values):
        _fields(f"an entry of {name}", _object(f"an entry of {name}", value), kind)
        found.append(kind(**value))
    return tuple(found)


def _fields(what: str, values: Mapping[str, Any], kind: Any) -> None:
    """Raise unless each value is a field of the class and no required field is missing."""
    entries = {entry.name: entry for entry in fields(kind)}
    unknown = sorted(set(values) - set(entries))
    if unknown:
        raise BadInput(f"{what} has no field {unknown[0]!r}; it has {', '.join(entries)}")
    needed = [name for name, entry in entries.items() if _required(entry)]
    for name in needed:
        if name not in values:
            raise BadInput(f"{what} lacks the field {name!r}")


def _required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} must be a JSON object, not {value!r}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{name} must be a list, not {value!r}")
    return value


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{name} must be a text, not {value!r}")


def _one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise BadInput(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput(f"{name} must be a whole number of at least 0, not {value!r}")


def _seconds(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise BadInput(f"{name} must be a time of at least 0 s, not {value!r}")
