"""The interface of all sources of events: sequences that read each event on access."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from harness.errors import BadInput
from harness.events.event import CLASSES, Event

_HASHED_WHOLE = 64 << 20
_HASHED_END = 1 << 20
_LOOKED_AT = 16  # events, for labels


class EventSet(Sequence[Event], ABC):
    """A lazy sequence of events.

    ``set[i]`` reads one event, ``set[a:b]`` is another lazy sequence, iteration reads neighbouring
    events together. A set is a context manager that closes its file.

    Attributes
    ----------
    name : str
        The path, or ``sample``.
    sizes : tuple of int
        Voxels per side of the images, ascending.
    """

    name: str
    sizes: tuple[int, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return f"<{type(self).__name__} {self.name}: {len(self):,} events of {sizes} px>"

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Identity of the content, in hexadecimal."""

    @property
    def size(self) -> int:
        """Voxels per side, where all events have the same.

        Raises
        ------
        BadInput
            If the set holds several sizes.
        """
        if len(self.sizes) != 1:
            listed = ", ".join(map(str, self.sizes))
            raise BadInput(f"{self.name} holds events of {listed} px; choose one with size")
        return self.sizes[0]

    @property
    def has_labels(self) -> bool:
        """Whether one of the first events has a voxel of one of the five classes."""
        first = self[: min(len(self), _LOOKED_AT)]
        return any(bool((event.labels < CLASSES).any()) for event in first)

    @abstractmethod
    def read(self, start: int, stop: int) -> list[Event]:
        """Read events ``start`` to ``stop - 1``, where ``0 <= start <= stop <= len(self)``."""

    def close(self) -> None:
        """Release the file, if one is open."""

    def __enter__(self) -> "EventSet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> "EventSet": ...
    def __getitem__(self, index: int | slice) -> "Event | EventSet":
        if isinstance(index, slice):
            return EventSubset(self, range(len(self))[index])
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self.name} has {len(self)} events; there is no event {index}")
        return self.read(position, position + 1)[0]

    def __iter__(self) -> Iterator[Event]:
        block = 16
        for start in range(0, len(self), block):
            yield from self.read(start, min(start + block, len(self)))


class FileSet(EventSet):
    """Events of one file, which a derived class opens as ``_file`` on construction.

    Parameters
    ----------
    path : Path
    """

    _file: Any

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, see ``file_sha256``."""
        return file_sha256(self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventSubset(EventSet):
    """Some events of a set, in the order of a range.

    Parameters
    ----------
    parent : EventSet
    chosen : range
        Of indices within ``parent``.
    """

    def __init__(self, parent: EventSet, chosen: range) -> None:
        self._parent, self._chosen = parent, chosen
        self.name = f"{parent.name}[{chosen.start}:{chosen.stop}:{chosen.step}]"
        self.sizes = parent.sizes

    @property
    def sha256(self) -> str:
        """Hash of the parent's identity and the range."""
        return hashlib.sha256(f"{self._parent.sha256} {self._chosen}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events of the subset."""
        part = self._chosen[start:stop]
        if part.step == 1:
            return self._parent.read(part.start, part.stop)
        return [self._parent[i] for i in part]


class JoinedSets(EventSet):
    """Several sets one after the other.

    Parameters
    ----------
    name : str
    parts : sequence of EventSet
        At least one.
    """

    def __init__(self, name: str, parts: Sequence[EventSet]) -> None:
        self._parts = parts
        self.name = name
        self.sizes = tuple(sorted({size for part in parts for size in part.sizes}))

    @property
    def sha256(self) -> str:
        """Hash of the parts' identities."""
        return hashlib.sha256(" ".join(part.sha256 for part in self._parts).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def read(self, start: int, stop: int) -> list[Event]:
        """Read consecutive events, across the borders of the parts."""
        events: list[Event] = []
        for part in self._parts:
            first, last = max(start, 0), min(stop, len(part))
            if first < last:
                events += part.read(first, last)
            start, stop = start - len(part), stop - len(part)
        return events


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Replace the exceptions of a format's library on a damaged file by one sentence.

    Parameters
    ----------
    path : Path
        The file.
    doing : str
        The part that is read, for the message.

    Raises
    ------
    BadInput
        Instead of any other exception.
    """
    try:
        yield
    except BadInput:
        raise
    # Damage surfaces as anything from struct.error to zlib.error, deep inside the libraries.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise BadInput(
            f"{path}: {doing} cannot be read, the file is truncated or damaged "
            f"({type(error).__name__}: {reason}); fetch or make it again"
        ) from error


def file_sha256(path: Path) -> str:
    """Hash a file's content, only in part if it is large.

    Up to 64 MiB the hash is that of the whole content. For larger files it is the hash of the
    length in decimal digits followed by the first and the last MiB, where formats keep their index.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        if length <= _HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(length).encode())
        digest.update(file.read(_HASHED_END))
        file.seek(-_HASHED_END, 2)
        digest.update(file.read(_HASHED_END))
    return digest.hexdigest()
