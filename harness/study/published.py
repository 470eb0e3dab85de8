"""Published numbers of the 2018 study (arXiv:1903.05663)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One number of Table II.

    Attributes
    ----------
    network : str
        ``dense`` or ``sparse``.
    device : str
        ``cuda`` (V100) or ``cpu`` (Xeon Silver 4110).
    size, batch : int
        Voxels per side and events per batch.
    phase : str
        ``forward`` (inference) or ``step`` (training).
    quantity : str
        ``memory`` in bytes or ``time`` in seconds.
    value : float
        In the unit of the quantity.
    """

    network: str
    device: str
    size: int
    batch: int
    phase: str
    quantity: str
    value: float


_COLUMNS = (
    ("dense", 192, 4),
    ("sparse", 192, 4),
    ("sparse", 192, 64),
    ("sparse", 512, 64),
    ("sparse", 768, 64),
)

# Gigabytes are decimal. The dense training took 26 GB on each of four GPUs.
_ROWS: dict[tuple[str, str, str], tuple[float | None, ...]] = {
    ("cuda", "memory", "forward"): (16e9, 0.044e9, 0.19e9, 0.67e9, 1.3e9),
    ("cuda", "memory", "step"): (4 * 26e9, 0.21e9, 1.3e9, 5.1e9, 9.3e9),
    ("cuda", "time", "forward"): (3.3, 0.10, 0.66, 2.4, 4.4),
    ("cuda", "time", "step"): (25.0, 0.21, 1.2, 5.0, 8.8),
    ("cpu", "memory", "forward"): (None, 0.57e9, 0.81e9, 1.9e9, 3.0e9),
    ("cpu", "memory", "step"): (None, 0.59e9, 1.9e9, 3.9e9, 4.0e9),
    ("cpu", "time", "forward"): (None, 0.25, 1.7, 8.0, 16.0),
    ("cpu", "time", "step"): (None, 1.1, 6.1, 24.0, 47.0),
}

TABLE_2 = tuple(
    Published(network, device, size, batch, phase, quantity, value)
    for (device, quantity, phase), values in _ROWS.items()
    for (network, size, batch), value in zip(_COLUMNS, values, strict=True)
    if value is not None
)
"""Memory and time in Table II."""

ACCURACY = {
    ("dense", 192, 4): (0.92, 0.096),
    ("sparse", 192, 4): (0.94, 0.088),
    ("sparse", 192, 64): (0.98, 0.049),
    ("sparse", 512, 64): (0.99, 0.014),
    ("sparse", 768, 64): (0.99, 0.0037),
}
"""Mean and standard deviation over events of the nonzero accuracy, by network, size and batch."""

FACTORS = {3: {"memory": 364.0, "time": 33.0}, 2: {"memory": 93.0, "time": 3.1}}
"""Dense over sparse in inference, by dimension, as in the abstract."""

MICHEL = {
    "efficiency": 0.939,
    "purity": 0.967,
    "cluster_efficiency": 0.954,
    "cluster_purity": 0.955,
}
"""Michel electrons: identification efficiency and purity, cluster efficiency and purity."""


def published(
    network: str, device: str, size: int, batch: int, phase: str, quantity: str
) -> float | None:
    """Return a number of Table II, or None if the table does not contain it."""
    key = (network, device, size, batch, phase, quantity)
    found = (p.value for p in TABLE_2 if tuple(vars(p).values())[:6] == key)
    return next(found, None)
