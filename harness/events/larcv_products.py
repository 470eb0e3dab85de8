"""Selection of the energy and label products of a larcv file, and their join to an event.

larcv writes each sparse tensor as a product of its own. The position of a voxel is one number, its
id, by which energies and labels are joined.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.event import LARGEST_SIZE, Event, Label, checked_event, voxels_of_keys

ENERGY_PRODUCTS = ("data", "pcluster", "reco")
"""Names of products with energies in MeV; the first one that is present is read."""

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
"""Names of products with labels, in the order of preference, with their order of labels."""


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
    for kind, products in (("energy", ENERGY_PRODUCTS), ("label", tuple(LABEL_PRODUCTS))):
        found = [name for name in products if name in present]
        if not found:
            raise BadInput(
                f"{source} has no {kind} product: one of {_listed(products)} is needed, "
                f"it has {_listed(present)}"
            )
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"sparse3d_{name}" for name in names) or "no sparse 3D product"


@dataclass(frozen=True)
class Product:
    """The voxels of one sparse tensor product of one event.

    Attributes
    ----------
    ids : ndarray of int, shape (N,)
        Number of each voxel.
    values : ndarray, shape (N,)
        Energies or labels.
    counts : tuple of int or None
        Voxels of the image along x, y and z; None where the product has no description.
    """

    ids: NDArray[Any]
    values: NDArray[Any]
    counts: tuple[int, int, int] | None


def join_products(
    energies: Product,
    labels: Product,
    label_product: str,
    *,
    first_axis_fastest: bool,
    size: int,
    name: str,
) -> Event:
    """Join the voxels of both products to an event.

    Parameters
    ----------
    energies, labels : Product
        The energies have a description of the image.
    label_product : str
        A key of ``LABEL_PRODUCTS``.
    first_axis_fastest : bool
        True where ``id = (z * ny + y) * nx + x`` (larcv2), False where
        ``id = (x * ny + y) * nz + z`` (larcv3).
    size : int
        Voxels per side of the images of the file.
    name : str
        File and entry.

    Raises
    ------
    BadInput
        If the image is no cube of that size, the products differ in their description or their
        voxels, or ids lie outside the image.
    """
    _check_image(energies, labels, label_product, size, name)
    ids = _checked_ids(energies, size, name)
    label_ids = _checked_ids(labels, size, name)
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
    values = labels.values[label_order]
    labels_of_voxels = translate_labels(values, LABEL_PRODUCTS[label_product], name)
    voxels = voxels_of_keys(ids, size)
    if first_axis_fastest:
        voxels = voxels[:, ::-1]
    return checked_event(voxels, energies.values[order], labels_of_voxels, size, name)


def _check_image(
    energies: Product, labels: Product, label_product: str, size: int, name: str
) -> None:
    """Check that both products describe the same cube; an event without voxels may have none."""
    counts = energies.counts or (0, 0, 0)
    if not any(counts) and not len(energies.ids):
        counts = (size, size, size)
    if len(set(counts)) != 1:
        raise BadInput(
            f"{name}: the image has {counts[0]} x {counts[1]} x {counts[2]} voxels; only cubes "
            "can be read, pad the images to one"
        )
    if counts[0] != size:
        raise BadInput(
            f"{name}: the image has {counts[0]} voxels per side, the first of the file "
            f"has {size}; write one size per file"
        )
    others = labels.counts
    if others is not None and others != counts and (any(others) or len(labels.ids)):
        raise BadInput(
            f"{name}: sparse3d_{label_product} has images of "
            f"{others[0]} x {others[1]} x {others[2]} voxels, the energies of {size}; "
            "write the file with labels of the same images"
        )


def checked_counts(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Check image sizes of shape (N, 3) before anything is computed from them.

    Raises
    ------
    BadInput
        If they are no whole numbers from 0 to ``LARGEST_SIZE``.
    """
    if values.dtype.kind not in "ui":
        raise BadInput(f"{name}: the image sizes are no whole numbers; write the file anew")
    if values.size and not (values.min() >= 0 and values.max() <= LARGEST_SIZE):
        wrong = values[(values < 0) | (values > LARGEST_SIZE)][0]
        raise BadInput(
            f"{name}: an image size of {wrong} voxels is impossible; the file is damaged"
        )
    return values.astype(np.int64)


def _checked_ids(product: Product, size: int, name: str) -> NDArray[np.int64]:
    ids, values = product.ids, product.values
    if ids.ndim != 1 or values.ndim != 1 or ids.dtype.kind not in "ui":
        raise BadInput(f"{name}: the voxels are no lists of ids and values; the file is damaged")
    if values.dtype.kind not in "uif":
        raise BadInput(f"{name}: the values are no numbers; the file is damaged")
    if len(ids) != len(values):
        raise BadInput(
            f"{name}: {len(values)} values do not match {len(ids)} voxel ids; the file is damaged"
        )
    if len(ids) and not (ids.min() >= 0 and ids.max() < size**3):
        wrong = ids[(ids < 0) | (ids >= size**3)][0]
        raise BadInput(
            f"{name}: voxel id {wrong} lies outside the image of {size} x {size} x {size} voxels; "
            "the file is damaged"
        )
    return ids.astype(np.int64)


def translate_labels(
    values: NDArray[Any], order: tuple[Label, ...], name: str
) -> NDArray[np.uint8]:
    """Translate a format's label numbers, integers of any type or floats, to ``Label``.

    Raises
    ------
    BadInput
        If a value is no index of ``order``.
    """
    if values.dtype.kind not in "uif":
        raise BadInput(f"{name}: the labels are no numbers; the product holds something else")
    valid = (values >= 0) & (values < len(order)) & (values == np.floor(values))
    if not valid.all():
        raise BadInput(
            f"{name}: label {values[np.argmin(valid)]} is none of 0 to {len(order) - 1}; "
            "the product holds no labels"
        )
    return np.array(order, np.uint8)[values.astype(np.int64)]
