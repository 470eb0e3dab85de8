"""Files of trained weights: the packaged one, and those that a user names."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.spec.cell import RANDOM, TRAINED, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_SHA256 = "8ee492320c7b3e567e884e0d80c91dd963432aeb7ea4df3d564bfbe891604c74"
"""Hash of the packaged file of weights, which ``results/trained-network`` describes."""


@dataclass(frozen=True)
class WeightFile:
    """A file of canonical weights.

    Attributes
    ----------
    name : str
        ``TRAINED``, or the name that a user has given.
    path : Path
        The file.
    sha256 : str
        Hash of its content.
    model : ModelSpec
        The network.
    dim : int
        Spatial dimensions of the network.
    """

    name: str
    path: Path
    sha256: str
    model: ModelSpec
    dim: int

    @property
    def label(self) -> str:
        """The name with the first digits of the hash, as cells and records have it."""
        name = TRAINED if self.name == TRAINED else self.path.name
        return f"{name}@{self.sha256[:12]}"


def find_weights(spec: str) -> WeightFile | None:
    """Return the file of weights of a name; None for ``RANDOM``.

    Parameters
    ----------
    spec : str
        ``TRAINED``, ``RANDOM``, or the path of an ``.npz`` file of canonical weights.

    Raises
    ------
    BadInput
        If there is no such file, or it holds no weights of a UResNet.
    """
    from harness.run.engine_interface import InvalidWeights, network_size

    if spec == RANDOM:
        return None
    path = weights_path(spec)
    if not path.is_file():
        raise BadInput(
            f"--weights must be {TRAINED}, {RANDOM} or a file of weights; there is no file {path}"
        )
    try:
        config, dim = network_size(read_weights(path))
    except InvalidWeights as error:
        raise BadInput(f"{path}: {error}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WeightFile(spec, path, digest, ModelSpec.of(config), dim)


def weights_path(name: str) -> Path:
    """Return the file of a name: the packaged one for ``TRAINED``, else the path itself."""
    if name == TRAINED:
        return Path(str(resources.files("harness.run"))) / "data" / "trained.npz"
    return Path(name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read canonical weights.

    Parameters
    ----------
    path : Path
        ``.npz`` file of float16 or float32 arrays, by canonical name.

    Returns
    -------
    dict
        Canonical name -> float32 tensor, with exactly the values of the file.

    Raises
    ------
    BadInput
        If the file cannot be read or holds something else.
    """
    import numpy as np
    import torch

    try:
        # From memory: of a damaged file NumPy leaves the handle open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise BadInput(f"there is no file {path}; give the path of a file of weights") from None
    except Exception as error:  # NumPy's reader raises whatever its parsers raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path} cannot be read as weights ({first}); write it with: harness weights convert "
            f"SOURCE {path.stem}.npz"
        ) from None
    # A member of the archive that is no array comes as bytes. Settings of the network are scalars.
    kinds = {
        getattr(array, "dtype", None)
        for array in arrays.values()
        if np.ndim(array) or not isinstance(array, np.ndarray)
    }
    if not arrays or not kinds <= {np.dtype(np.float16), np.dtype(np.float32)}:
        raise BadInput(
            f"{path} holds no canonical weights; write it with: harness weights convert SOURCE "
            f"{path.stem}.npz"
        )
    return {
        name: torch.from_numpy(array.astype(np.float32) if array.ndim else array)
        for name, array in arrays.items()
    }
