"""The packed sample: simulated events in the package, one file per size.

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
from harness.files import check_target, make_folder

COUNTS = {192: 256, 512: 96, 768: 96}
"""Number of events by size in voxels per side."""

SHA256 = {
    192: "9680b1549d7dd58602523c378da24f8820db3d831d1075b97915cf1ddb5eb3f1",
    512: "e1806b69db29cfa152a0ae5ccc90629bfadaa3c1acc68c2f7a6ae1f4d24caa3b",
    768: "43a91028e56d5b405fb6a572eac8bdab38be99082bc669357fbe32e4ebd1abd2",
}
"""Hashes of the files in the package, by size."""

SEED = 2018
LEAST_VOXELS = 500
"""Least number of voxels; in events with fewer, the particles left the image at once."""


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
        As for ``simulate``; the files do not depend on it.

    Yields
    ------
    size, path, sha256 : int, Path, str
        Of each file, as soon as it is complete.
    """
    make_folder(folder, "--out")
    for size in COUNTS:
        check_target(folder / sample_file_name(size), "--out")
    for size, count in COUNTS.items():
        path = folder / sample_file_name(size)
        write_packed(path, _first_large(size, count, processes))
        yield size, path, hashlib.sha256(path.read_bytes()).hexdigest()


def _first_large(size: int, count: int, processes: int | None) -> list[Event]:
    # One event in ten has too few voxels; a quarter more is enough.
    events = simulate(Recipe(size, SEED), count + count // 4, processes=processes)
    large = [event for event in events if len(event) >= LEAST_VOXELS][:count]
    if len(large) < count:
        raise RuntimeError(f"only {len(large)} of {count} events of {size} px are large enough")
    return large
