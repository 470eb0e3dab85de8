"""Opening of any source of events, recognised by its content."""

from collections.abc import Callable
from pathlib import Path

from harness.errors import BadInput
from harness.events.event_set import EventSet, explained
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
        Voxels per side. It chooses among the sizes of the packed sample; a file must have it.

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
    with explained(path, "the file"), path.open("rb") as file:
        start = file.read(8)
    if start == MAGIC:
        return PackedSet(path)
    if start.startswith(b"root"):
        from harness.events.larcv2 import Larcv2Set

        return Larcv2Set(path)
    if start == b"\x89HDF\r\n\x1a\n":
        return _open_hdf5(path)
    raise BadInput(
        f"{path} is neither ROOT nor HDF5 nor a packed file; give a larcv2, larcv3, PILArNet-M "
        "or sscn-bench event file"
    )


def _open_hdf5(path: Path) -> EventSet:
    import h5py

    from harness.events import larcv3, native, pilarnet_m

    with explained(path, "the file"), h5py.File(path, "r") as file:
        kinds: tuple[tuple[Callable[[h5py.File], bool], Callable[[Path], EventSet]], ...] = (
            (native.is_native, native.NativeSet),
            (larcv3.is_larcv3, larcv3.Larcv3Set),
            (pilarnet_m.is_pilarnet_m, pilarnet_m.PilarnetMSet),
        )
        for is_format, event_set in kinds:
            if is_format(file):
                return event_set(path)
        found = ", ".join(file) or "nothing"
    raise BadInput(
        f"{path} is an HDF5 file of another kind (it holds {found}); give a larcv3, PILArNet-M "
        "or sscn-bench event file"
    )
