"""The packed sample: simulated events that come with the package, one file a size.

``python -m harness events sample --out DIR`` makes the same files again, byte for byte.
"""

import hashlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from harness.errors import BadInput
from harness.events.event import Event
from harness.events.event_set import EventSet, JoinedSets
from harness.events.packed import PackedSet, write_packed
from harness.events.simulate import Recipe, simulate

COUNTS = {192: 256, 512: 96, 768: 96}
"""Events at each size in voxels a side."""

SHA256 = {
    192: "b71f576011ab2c1670d3b1a9150ed0e32ca1193ef65b70e65803f524a0d4a1e2",
    512: "7bdb63859a16e231b7782838ab47b38d2604a48a1a765e368a7e74e9aeb06004",
    768: "9a8f27661fe1c9742c0d52a31626e88b17bac7fc34681c42b1c9f7b758632674",
}
"""Of the files in the package."""

SEED = 2018
LEAST_VOXELS = 500
"""Emptier events, whose particles left the image at once, are not part of the sample."""


def sample_path(size: int) -> Path:
    """Return the file of one size in the package."""
    return Path(str(resources.files("harness.events"))) / "data" / sample_file_name(size)


def sample_file_name(size: int) -> str:
    """Return the name of a size's file."""
    return f"sample_{size}.sscnpack"


def open_sample(size: int | None = None) -> EventSet:
    """Open the events of one size, or of all sizes, ascending.

    Raises
    ------
    BadInput
        If the sample has no events of that size.
    """
    if size is None:
        return JoinedSets("sample", [open_sample(each) for each in COUNTS])
    if size not in COUNTS:
        listed = ", ".join(map(str, COUNTS))
        raise BadInput(f"the packed sample has events of {listed} px, none of {size}; choose one")
    return PackedSet(sample_path(size), name=f"sample {size} px")


def make_sample(folder: Path, *, processes: int | None = None) -> Iterator[tuple[int, Path, str]]:
    """Simulate and pack the sample anew.

    Parameters
    ----------
    folder : Path
        Made if needed.
    processes : int, optional
        As for `simulate`; the files do not depend on it.

    Yields
    ------
    size, path, sha256 : int, Path, str
        Of each file, as soon as it is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for size, count in COUNTS.items():
        path = folder / sample_file_name(size)
        write_packed(path, _first_large(size, count, processes))
        yield size, path, hashlib.sha256(path.read_bytes()).hexdigest()


def _first_large(size: int, count: int, processes: int | None) -> list[Event]:
    # One event in ten is too empty; a quarter more is plenty.
    events = simulate(Recipe(size, SEED), count + count // 4, processes=processes)
    large = [event for event in events if len(event) >= LEAST_VOXELS][:count]
    if len(large) < count:
        raise RuntimeError(f"only {len(large)} of {count} events of {size} px are large enough")
    return large
