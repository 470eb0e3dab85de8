"""Which products of a larcv file are the energies and the labels, and how both become an event.

larcv writes each sparse tensor as a product of its own. A voxel's place is one number, its id;
energies and labels are joined by it.
"""

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import Event, Label, checked_event

ENERGY_PRODUCTS = ("data", "pcluster", "reco")
"""Names of products that hold MeV, the first present is read."""

FIVETYPES_ORDER = (Label.HIP, Label.MIP, Label.SHOWER, Label.DELTA, Label.MICHEL)
SHAPE_ORDER = (
    Label.SHOWER,
    Label.TRACK,
    Label.MICHEL,
    Label.DELTA,
    Label.LOW_ENERGY,
    Label.GHOST,
    Label.UNKNOWN,
)
"""The order of larcv2's ShapeType_t, which PILArNet-M shares."""

LABEL_PRODUCTS = {
    "fivetypes": FIVETYPES_ORDER,
    "pcluster_semantics": SHAPE_ORDER,
    "semantics": SHAPE_ORDER,
    "pcluster_semantics_ghost": SHAPE_ORDER,
}
"""Names of products that hold labels, in the order of preference, with their order of labels."""


def choose_products(present: list[str], source: str) -> tuple[str, str]:
    """Choose the energy and the label product.

    Parameters
    ----------
    present : list of str
        Names of the sparse 3D products, without ``sparse3d_``.
    source : str
        The file, for the message.

    Raises
    ------
    BadInput
        If either is missing.
    """
    chosen = []
    for kind, known in (("energy", ENERGY_PRODUCTS), ("label", tuple(LABEL_PRODUCTS))):
        found = [name for name in known if name in present]
        if not found:
            raise BadInput(
                f"{source} has no {kind} product: one of {_listed(known)} is needed, "
                f"it has {_listed(present)}"
            )
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"sparse3d_{name}" for name in names) or "no sparse 3D product"


def join_products(
    energies: tuple[NDArray, NDArray],
    labels: tuple[NDArray, NDArray],
    label_product: str,
    counts: tuple[int, int, int],
    *,
    first_axis_fastest: bool,
    size: int,
    name: str,
) -> Event:
    """Join the voxels of both products to an event.

    Parameters
    ----------
    energies, labels : tuple of ndarray
        Ids and values of the voxels of each product.
    label_product : str
        A key of `LABEL_PRODUCTS`.
    counts : tuple of int
        Voxels of the image along x, y and z.
    first_axis_fastest : bool
        True where ``id = (z * ny + y) * nx + x`` (larcv2), False where
        ``id = (x * ny + y) * nz + z`` (larcv3).
    size : int
        Voxels a side of the cube that holds the image.
    name : str
        File and entry.

    Raises
    ------
    BadInput
        If ids lie outside the image or the two products have different voxels.
    """
    ids, label_ids = (_checked_ids(product[0], counts, name) for product in (energies, labels))
    if len(ids) != len(label_ids):
        raise BadInput(
            f"{name}: {len(label_ids)} labels in sparse3d_{label_product} do not match "
            f"{len(ids)} voxels; write the file with labels of the same voxels"
        )
    order, label_order = np.argsort(ids, kind="stable"), np.argsort(label_ids, kind="stable")
    ids = ids[order]
    if not np.array_equal(ids, label_ids[label_order]):
        raise BadInput(
            f"{name}: the labels in sparse3d_{label_product} belong to other voxels than the "
            "energies; write the file with labels of the same voxels"
        )
    labels_of_voxels = translate_labels(labels[1][label_order], LABEL_PRODUCTS[label_product], name)
    nx, ny, nz = counts
    if first_axis_fastest:
        voxels = np.column_stack([ids % nx, ids // nx % ny, ids // (nx * ny)])
    else:
        voxels = np.column_stack([ids // (ny * nz), ids // nz % ny, ids % nz])
    return checked_event(voxels, energies[1][order], labels_of_voxels, size, name)


def _checked_ids(ids: NDArray, counts: tuple[int, int, int], name: str) -> NDArray[np.int64]:
    # Unsigned in the file: a negative id appears as one far too large.
    limit = counts[0] * counts[1] * counts[2]
    if len(ids) and ids.max() >= limit:
        raise BadInput(
            f"{name}: voxel id {ids.max()} lies outside the image of "
            f"{counts[0]} x {counts[1]} x {counts[2]} voxels; the file is damaged"
        )
    return ids.astype(np.int64)


def translate_labels(values: NDArray, order: tuple[Label, ...], name: str) -> NDArray[np.uint8]:
    """Translate a format's label numbers, integers of any type or floats, to `Label`.

    Raises
    ------
    BadInput
        If a value is no index of `order`.
    """
    known = (values >= 0) & (values < len(order)) & (values == np.floor(values))
    if not known.all():
        raise BadInput(
            f"{name}: label {values[np.argmin(known)]} is none of 0 to {len(order) - 1}; "
            "the product holds something else than labels"
        )
    return np.array(order, np.uint8)[values.astype(np.int64)]
