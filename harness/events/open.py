"""Opens any source of events, recognised by its content."""

from pathlib import Path

from harness.errors import BadInput
from harness.events.event_set import EventSet
from harness.events.packed import MAGIC, PackedSet
from harness.events.sample import open_sample

SAMPLE = "sample"


def open_events(source: str | Path, *, size: int | None = None) -> EventSet:
    """Open a set of events without reading them.

    Parameters
    ----------
    source : str or Path
        ``"sample"`` for the packed sample, otherwise a file.
    size : int, optional
        Voxels a side. It chooses among the sizes of the packed sample; a file must have it.

    Returns
    -------
    EventSet

    Raises
    ------
    BadInput
        If the file is missing, of an unknown format, damaged, or of another size.
    """
    if str(source) == SAMPLE:
        return open_sample(size)
    path = Path(source)
    event_set = _open_file(path)
    if size is not None and event_set.sizes != (size,):
        listed = ", ".join(map(str, event_set.sizes))
        raise BadInput(f"{path} holds events of {listed} px, not of {size}; choose that size")
    return event_set


def _open_file(path: Path) -> EventSet:
    if not path.is_file():
        raise BadInput(f"{path} is no file; give 'sample' or the path of an event file")
    with path.open("rb") as file:
        start = file.read(8)
    if start == MAGIC:
        return PackedSet(path)
    raise BadInput(f"{path} is not an event file of a known format")
