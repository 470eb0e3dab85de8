"""Event files of the formats that the project reads but does not write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.events import Event, Label
from harness.events.larcv_products import SHAPE_ORDER

LARCV2_ENERGY_BRANCHES = {
    "_voxel_v._id": "var * uint64",
    "_voxel_v._value": "var * float32",
    "_meta._xnum": "uint64",
    "_meta._ynum": "uint64",
    "_meta._znum": "uint64",
}
LARCV2_LABEL_BRANCHES = {
    "_voxel_v._id": "var * uint64",
    "_voxel_v._value": "var * float32",
}


def larcv2_ids(event: Event) -> NDArray[np.uint64]:
    x, y, z = event.voxels.astype(np.uint64).T
    size = np.uint64(event.size)
    return (z * size + y) * size + x


def larcv3_ids(event: Event) -> NDArray[np.uint64]:
    x, y, z = event.voxels.astype(np.uint64).T
    size = np.uint64(event.size)
    return (x * size + y) * size + z


def write_larcv2(
    path: Path, events: Sequence[Event], label_sizes: int | None = None, **changes: Any
) -> None:
    """Write larcv2's trees; ``changes`` replaces columns, keyed like ``data__voxel_v._id``.

    With ``label_sizes``, the labels have a description of their images, too.
    """
    import awkward
    import uproot

    def sorted_by_id(values: Sequence[NDArray]) -> Any:
        orders = [np.argsort(larcv2_ids(event)) for event in events]
        return awkward.Array([v[o] for v, o in zip(values, orders, strict=True)])

    ids = sorted_by_id([larcv2_ids(event) for event in events])
    side = np.array([event.size for event in events], np.uint64)
    columns = {
        "data": {
            "_voxel_v._id": ids,
            "_voxel_v._value": sorted_by_id([event.energies for event in events]),
            "_meta._xnum": side,
            "_meta._ynum": side,
            "_meta._znum": side,
        },
        "fivetypes": {
            "_voxel_v._id": ids,
            "_voxel_v._value": sorted_by_id([e.labels.astype(np.float32) for e in events]),
        },
    }
    label_branches = dict(LARCV2_LABEL_BRANCHES)
    if label_sizes is not None:
        for axis in "xyz":
            label_branches[f"_meta._{axis}num"] = "uint64"
            columns["fivetypes"][f"_meta._{axis}num"] = np.full(len(events), label_sizes, np.uint64)
    for key, value in changes.items():
        product, branch = key.split("__", 1)
        columns[product]["_" + branch.lstrip("_")] = value
    with uproot.recreate(path) as file:
        for product, branches in (
            ("data", LARCV2_ENERGY_BRANCHES),
            ("fivetypes", label_branches),
        ):
            tree = file.mktree(f"sparse3d_{product}_tree", branches)
            tree.extend(columns[product])


EXTENT = np.dtype({"names": ["first", "N"], "formats": ["<u8", "<u4"], "itemsize": 16})
VOXEL_EXTENT = np.dtype(
    {"names": ["first", "N", "ID"], "formats": ["<u8", "<u4", "<u4"], "itemsize": 16}
)
VOXEL = np.dtype({"names": ["id", "value"], "formats": ["<u8", "<f4"], "itemsize": 16})
META = np.dtype(
    [
        ("valid", "<u8"),
        ("projection_id", "<u8"),
        ("image_sizes", "<f8", 3),
        ("number_of_voxels", "<u8", 3),
        ("origin", "<f8", 3),
    ]
)


def write_larcv3(path: Path, events: Sequence[Event]) -> None:
    with h5py.File(path, "w") as file:
        file["Events/event_id"] = np.zeros(len(events), [("run", "<u8"), ("event", "<u8")])
        for product in ("data", "fivetypes"):
            group = file.create_group(f"Data/sparse3d_{product}_group")
            counts = np.array([len(event) for event in events])
            extents = np.zeros(len(events), EXTENT)
            extents["first"], extents["N"] = np.arange(len(events)), 1
            voxel_extents = np.zeros(len(events), VOXEL_EXTENT)
            voxel_extents["first"], voxel_extents["N"] = np.cumsum(counts) - counts, counts
            meta = np.zeros(len(events), META)
            meta["valid"] = 1
            meta["number_of_voxels"] = [[event.size] * 3 for event in events]
            voxels = np.zeros(counts.sum(), VOXEL)
            if len(voxels):
                voxels["id"] = np.concatenate([larcv3_ids(event) for event in events])
                voxels["value"] = np.concatenate(
                    [event.energies if product == "data" else event.labels for event in events]
                )
            group["extents"], group["voxel_extents"] = extents, voxel_extents
            group["image_meta"], group["voxels"] = meta, voxels


PARTICLES = {Label.HIP: 4, Label.MIP: 2}


def write_pilarnet_m(
    path: Path, events: Sequence[Event], revision: int, *, extra: bool = True
) -> None:
    """Write one cluster a voxel, labels as far as the revision can tell them."""
    points = h5py.vlen_dtype(np.float32)
    integers = h5py.vlen_dtype(np.int64)
    with h5py.File(path, "w") as file:
        point = file.create_dataset("point", (len(events),), points)
        cluster = file.create_dataset("cluster", (len(events),), integers)
        if revision == 2 and extra:
            file.create_dataset("cluster_extra", (len(events),), points)
        for i, event in enumerate(events):
            table = np.zeros((len(event), 8), np.float32)
            table[:, :3], table[:, 3] = event.voxels, event.energies
            rows = np.ones((len(event), 4 + revision), np.int64)
            shapes = [Label.TRACK if label in PARTICLES else Label(label) for label in event.labels]
            rows[:, 4] = [SHAPE_ORDER.index(shape) for shape in shapes]
            if revision == 2:
                rows[:, 5] = [PARTICLES.get(Label(label), -1) for label in event.labels]
            point[i], cluster[i] = table.ravel(), rows.ravel()
