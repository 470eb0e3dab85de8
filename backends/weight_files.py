"""Files of weights: canonical, in the layout of an engine, or checkpoints of other projects."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends import network as networks
from backends import registry, weights
from backends.contract import Kind
from backends.network_spec import NAMES
from backends.spine_checkpoints import from_spine, is_spine, to_spine
from backends.uresnet import UResNet, UResNetConfig
from backends.weights import DEEPEST, SETTINGS, InvalidWeights, Weights

SUFFIXES = (".pt", ".npz")
STUDY = "study"
SPINE = "spine"
CANONICAL = "canonical"


def read(path: Path, layout: str = CANONICAL, network: UResNetConfig | None = None) -> Weights:
    """Read weights from a file.

    Parameters
    ----------
    path : Path
        A ``.npz`` file of numpy. A file with any other suffix is read with ``torch.load``; it may
        be a checkpoint of a training.
    layout : str
        ``canonical``; ``study`` for the SparseConvNet network of arXiv:1903.05663; ``spine`` for
        SPINE's ``UResNetSegmentation``; or the name of an engine, for the ``state_dict`` of a
        UResNet on that engine.
    network : UResNetConfig, optional
        The network, whose activation and norms the shapes do not show. By default, canonical
        weights name them themselves, those of SPINE have SPINE's, and all others the study's.

    Returns
    -------
    dict
        Canonical name -> tensor, and the settings of ``backends.weights.SETTINGS``.

    Raises
    ------
    InvalidWeights
        If the file cannot be read or its entries are not those of a UResNet.
    """
    if not path.is_file():
        raise InvalidWeights(f"there is no file {path}; give the path of a file of weights")
    try:
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content)) as stored:
                state: Any = {name: torch.from_numpy(stored[name]) for name in stored.files}
        else:
            _check_archive(content)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends disabling the protection.
        if "GLOBAL" not in str(error):
            raise InvalidWeights(
                f"{path} cannot be read as weights: it is no state dict that torch.save wrote"
            ) from None
        raise InvalidWeights(
            f"{path} holds Python objects, which may run code and are not loaded; save the state "
            "dict alone: torch.save(network.state_dict(), FILE)"
        ) from None
    except Exception as error:  # both readers raise whatever their parsers raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidWeights(f"{path} cannot be read as weights: {first}") from None
    if isinstance(state, dict):  # a checkpoint of the study, or of our own training
        state = state.get("state_dict", state.get("network", state))
    values = _checked_state(path, state)
    if layout == STUDY:
        values = from_study(values)
    elif layout == SPINE:
        values = from_spine(values) | weights.settings(NAMES[SPINE])
    elif layout != CANONICAL:
        registry.module_name(layout)
        values = _from_engine(values, layout)
    elif "stem.weight" not in values:
        raise InvalidWeights(f"{path} holds no canonical weights; {_likely_layout(values)}")
    config, _ = network_size(values)
    if network is None:
        return values
    for name, value in vars(config).items():
        if name not in SETTINGS and value != getattr(network, name):
            raise InvalidWeights(
                f"{path} has the weights of a network with {name} {value}, not "
                f"{getattr(network, name)}; give the network that they belong to"
            )
    sizes = {name: value for name, value in values.items() if name not in SETTINGS}
    return sizes | weights.settings(network)


def _likely_layout(names: Mapping[str, Tensor]) -> str:
    """Return which layout the names of some weights suggest, as advice."""
    if any(name.removeprefix("module.").startswith("sparseModel.") for name in names):
        return f"their names are those of the 2018 study's network: --from {STUDY}"
    if is_spine(names):
        return f"their names are those of SPINE's UResNet: --from {SPINE}"
    if any(".native." in name for name in names):
        return "their names are those of a UResNet on an engine: --from ENGINE, as sscn or spconv"
    return "name the layout they are in with --from"


def _check_archive(content: bytes) -> None:
    """Check the checksums of a file of torch, which torch itself does not.

    Files of versions before 1.6 are no archives and have none.

    Raises
    ------
    ValueError
        If a member is damaged.
    """
    stream = io.BytesIO(content)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of its member {damaged} does not fit")


def _checked_state(path: Path, state: Any) -> Weights:
    """Return the entries of a state dict, if all are dense tensors of real numbers with names.

    Raises
    ------
    InvalidWeights
        If they are not.
    """
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InvalidWeights(f"{path} holds no state dict; give a file of named tensors")
    for name, value in state.items():
        counts = name.endswith("num_batches_tracked")
        dense = value.layout is torch.strided and value.device.type == "cpu"
        if not dense or not (value.is_floating_point() or (counts and not value.is_complex())):
            raise InvalidWeights(
                f"{path}: {name} is a tensor of {value.dtype} ({value.layout}, {value.device}), "
                "not a dense one of real numbers"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InvalidWeights(f"{path}: {name} has more elements than the file holds numbers")
    return {name: value.detach() for name, value in state.items()}


def write(
    path: Path, values: Mapping[str, Tensor], layout: str = CANONICAL, *, half: bool = False
) -> None:
    """Write weights to ``.npz`` or ``.pt``, canonical or in the layout of an engine or of SPINE.

    Layouts other than the canonical one have no entries for the settings of the network.

    With ``half``, numbers are rounded to 16 bits, and an ``.npz`` file is compressed.

    Raises
    ------
    InvalidWeights
        If the suffix or the layout is not supported, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidWeights(f"{path} has no known suffix; choose one of {', '.join(SUFFIXES)}")
    _check_target(path)
    if layout == STUDY:
        raise InvalidWeights("checkpoints of the study can be read, not written")
    state: Mapping[str, Tensor] = values
    if half:  # single numbers are settings of the network
        state = {name: value.half() if value.ndim else value for name, value in values.items()}
    if layout == SPINE:
        state = to_spine(values, network_size(values)[0])
    elif layout != CANONICAL:
        config, dim = network_size(values)
        network = _network(layout, config, dim)
        weights.load(network, values)
        state = network.state_dict()
    content = io.BytesIO()
    if path.suffix == ".npz":
        save: Any = np.savez_compressed if half else np.savez
        save(content, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save({"state_dict": dict(state)} if layout == SPINE else dict(state), content)
    _replace(path, content.getvalue())


def _check_target(path: Path) -> None:
    """Raise if the target exists and is not a regular file, or its folder does not exist."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidWeights(f"{path} is no regular file; give another TARGET")
        if not path.parent.is_dir():
            raise InvalidWeights(f"{path}: the folder {path.parent} does not exist; make it first")
    except OSError as error:
        raise InvalidWeights(f"cannot write {path}: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    """Write a complete file or none.

    ``harness.files.write_bytes`` does the same, but this package does not import the harness.
    """
    target = path.resolve()
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise InvalidWeights(
            f"cannot write {path}: {error.strerror}; give another TARGET"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def network_size(values: Mapping[str, Tensor]) -> tuple[UResNetConfig, int]:
    """Return the network and its number of dimensions, read off canonical weights.

    Raises
    ------
    InvalidWeights
        If they are not the weights of one UResNet.
    """
    try:
        stem, linear = values["stem.weight"], values["linear.weight"]
    except KeyError as missing:
        raise InvalidWeights(
            f"these weights have no {missing.args[0]}: name the layout they are in with --from"
        ) from None
    reps = len(
        {name for name in values if re.fullmatch(r"unet\.encoder\.\d+\.conv1\.weight", name)}
    )
    if stem.ndim not in (4, 5) or not linear.ndim or not min(*stem.shape, *linear.shape):
        raise InvalidWeights(
            f"stem.weight has shape {tuple(stem.shape)} and linear.weight {tuple(linear.shape)}: "
            "these are not the weights of a UResNet"
        )
    own = {
        name: float(values[name]) for name in SETTINGS if name in values and not values[name].ndim
    }
    config = UResNetConfig(len(stem), _depth(values), reps, len(linear), stem.shape[1], **own)
    dim = stem.ndim - 2
    expected = weights.shapes(config, dim) | dict.fromkeys(own, ())
    for name in expected.keys() ^ values.keys():
        raise InvalidWeights(f"{name} does not fit the other weights: they belong to no UResNet")
    for name, shape in expected.items():
        if tuple(values[name].shape) != shape:
            raise InvalidWeights(
                f"{name} has shape {tuple(values[name].shape)} where the other weights need {shape}"
            )
    return config, dim


def _depth(names: Iterable[str]) -> int:
    """Return the number of levels of the network that entries of these names belong to.

    Raises
    ------
    InvalidWeights
        If there are more than ``DEEPEST``.
    """
    depth = 1 + max((name.count("below.") for name in names), default=0)
    if depth > DEEPEST:
        raise InvalidWeights(
            f"these weights belong to {depth} levels; a UResNet has {DEEPEST} at most"
        )
    return depth


def _network(engine: str, config: UResNetConfig, dim: int) -> UResNet:
    backend = registry.load(engine, dim=dim, device="cpu", precision="fp32")
    found = networks.build(backend, config)
    if not isinstance(found, UResNet):
        raise InvalidWeights(f"{engine} has a network of its own, without canonical weights")
    return found


def _from_engine(state: Mapping[str, Tensor], engine: str) -> Weights:
    """Convert the state dict of a UResNet of any size on an engine to canonical weights."""
    config, dim = _size_on_engine(state, engine)
    needed = sum(math.prod(shape) for shape in weights.shapes(config, dim).values())
    if needed > 2 * sum(value.numel() for value in state.values()):  # before they are allocated
        raise InvalidWeights(f"this is not the state dict of a UResNet on {engine}")
    network = _network(engine, config, dim)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InvalidWeights(
            f"this is not the state dict of a UResNet on {engine}: {str(error).splitlines()[0]}"
        ) from None
    return weights.dump(network)


def _size_on_engine(state: Mapping[str, Tensor], engine: str) -> tuple[UResNetConfig, int]:
    """Return the size of the network whose state dict on the engine has these shapes."""
    depth = _depth(state)
    encoders = {m[1] for name in state if (m := re.match(r"unet\.encoder\.(\d+)\.", name))}
    stem = [value for name, value in state.items() if name.startswith("stem.native.")]
    bias = [value for name, value in state.items() if re.match(r"linear\.native.*bias$", name)]
    norm = [value for name, value in state.items() if re.match(r"norm\.native.*weight$", name)]
    if not (encoders and len(stem) == len(bias) == len(norm) == 1):
        raise InvalidWeights(f"this is not the state dict of a UResNet on {engine}")
    filters, classes = norm[0].numel(), bias[0].numel()
    for dim in (3, 2):
        taps = filters * 3**dim
        if taps and stem[0].numel() % taps == 0:
            inputs = stem[0].numel() // taps
            return UResNetConfig(filters, depth, len(encoders), classes, inputs), dim
    raise InvalidWeights(f"this is not the state dict of a UResNet on {engine}")


def from_study(state: Mapping[str, Tensor]) -> Weights:
    """Convert the state dict of the study's SparseConvNet network to canonical weights.

    The names are those of ``sparseconvnet.UNet`` with residual blocks in the ``UResNet`` of
    Temigo/uresnet_pytorch: indices of modules in nested containers. Weights are (K, in, out),
    or (K, 1, in, out) in versions of the engine with groups. The last axis of the kernel varies
    fastest.

    Raises
    ------
    InvalidWeights
        If the names differ from these.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    blocks = [m for name in state if (m := re.match(r"sparseModel\.2\.(\d+)\.1\.1\.weight$", name))]
    if "sparseModel.1.weight" not in state or not blocks:
        raise InvalidWeights("this is not a state dict of the study's SparseConvNet network")
    taps = state["sparseModel.1.weight"].shape[:1]
    if taps not in ((9,), (27,)):
        raise InvalidWeights("sparseModel.1.weight has neither 27 nor 9 taps")
    dim = 3 if taps == (27,) else 2
    # In a level, the encoder blocks have the indices 0, 2, …, the deeper levels have the index
    # 2 * reps, and as many decoder blocks follow.
    last = max(int(m[1]) for m in blocks)
    deeper = any(re.match(rf"sparseModel\.2\.{i}\.1\.4\.", n) for n in state for i in range(last))
    reps = last // 4 if deeper else last // 2 + 1
    found: Weights = {}
    unused = {name for name in state if not name.endswith("num_batches_tracked")}

    def take(name: str) -> Tensor:
        if name not in state:
            raise InvalidWeights(f"this state dict lacks {name}, which the study's network has")
        unused.discard(name)
        return state[name]

    def convolution(kind: Kind, ours: str, name: str) -> None:
        weight = take(f"{name}.weight")
        size = 3 if kind is Kind.SUBMANIFOLD else 2
        if weight.ndim not in (3, 4) or len(weight) != size**dim or weight.shape[1:-2].numel() != 1:
            raise InvalidWeights(f"{name}.weight has shape {tuple(weight.shape)}, no convolution's")
        weight = weight.reshape(len(weight), *weight.shape[-2:])
        order = (1, 2, 0) if kind is Kind.INVERSE else (2, 1, 0)
        weight = weight.permute(*order)
        found[f"{ours}.weight"] = weight.reshape(*weight.shape[:2], *[size] * dim).contiguous()

    def norm(ours: str, name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{ours}.{part}"] = take(f"{name}.{part}")

    def block(ours: str, name: str) -> None:
        if f"{name}.0.weight" in state:
            shortcut = take(f"{name}.0.weight")
            if shortcut.ndim != 2:
                raise InvalidWeights(f"{name}.0.weight is no matrix")
            found[f"{ours}.shortcut.weight"] = shortcut.t().contiguous()
        norm(f"{ours}.norm1", f"{name}.1.0")
        convolution(Kind.SUBMANIFOLD, f"{ours}.conv1", f"{name}.1.1")
        norm(f"{ours}.norm2", f"{name}.1.2")
        convolution(Kind.SUBMANIFOLD, f"{ours}.conv2", f"{name}.1.3")

    def level(ours: str, name: str) -> None:
        for rep in range(reps):
            block(f"{ours}.encoder.{rep}", f"{name}.{2 * rep}")
        below = f"{name}.{2 * reps}.1"
        if f"{below}.4.weight" not in state:
            return
        norm(f"{ours}.down_norm", f"{below}.0")
        convolution(Kind.STRIDED, f"{ours}.down", f"{below}.1")
        level(f"{ours}.below", f"{below}.2")
        norm(f"{ours}.up_norm", f"{below}.3")
        convolution(Kind.INVERSE, f"{ours}.up", f"{below}.4")
        for rep in range(reps):
            block(f"{ours}.decoder.{rep}", f"{name}.{2 * reps + 2 + 2 * rep}")

    convolution(Kind.SUBMANIFOLD, "stem", "sparseModel.1")
    level("unet", "sparseModel.2")
    norm("norm", "sparseModel.3")
    found["linear.weight"], found["linear.bias"] = take("linear.weight"), take("linear.bias")
    if unused:
        raise InvalidWeights(f"{min(unused)} is not part of the study's network")
    network_size(found)
    return found
