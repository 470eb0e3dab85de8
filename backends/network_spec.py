"""Networks by name: the study's, SPINE's, that of a SPINE configuration file, or by settings."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.capabilities import Unsupported
from backends.uresnet import UResNetConfig

NAMES = {"study": UResNetConfig(), "spine": UResNetConfig(filters=32, slope=0.33)}
"""The network of the 2018 study, and the one of SPINE's configurations."""

SUFFIXES = (".yaml", ".yml")

_COUNTS = {
    "filters": "filters",
    "depth": "depth",
    "reps": "reps",
    "classes": "classes",
    "inputs": "in_channels",
}
"""Setting -> field of ``UResNetConfig``, for whole numbers."""

_SPINE_COUNTS = {
    "filters": "filters",
    "depth": "depth",
    "reps": "reps",
    "num_classes": "classes",
    "num_input": "in_channels",
}
_SPINE_FIXED: dict[str, Any] = {
    "data_dim": 3,
    "input_kernel": 3,
    "allow_bias": False,
    "ghost": False,
    "lattice": None,
}
"""Settings of SPINE's UResNet that the networks here have with one value only."""

_SPINE_DIRECTIVES = frozenset(("include", "override", "remove"))
"""Keys of a configuration file that SPINE replaces by the content of other files, or edits."""

_SPINE_IGNORED = ("spatial_size", "model_name", "weight_path", "freeze_weights")
"""Entries of a ``uresnet`` section that do not change the network."""


class UnknownNetwork(Unsupported):
    """A text or a configuration file that describes none of the networks here."""


def parse_network(text: str) -> UResNetConfig:
    """Return the network that a text describes.

    Parameters
    ----------
    text : str
        ``study``, ``spine``, the path of a SPINE configuration file (``.yaml``), or settings
        separated by commas: ``filters``, ``depth``, ``reps``, ``classes``, ``inputs``,
        ``activation`` (``relu`` or ``leaky_relu:SLOPE``), ``eps`` and ``momentum``. Settings that
        are left out are the study's, or SPINE's after ``spine``, as in ``spine,inputs=2``.

    Raises
    ------
    UnknownNetwork
        If the text is none of these, a value is out of range, or the file describes a network that
        is not supported.
    """
    if text in NAMES:
        return NAMES[text]
    if text.lower().endswith(SUFFIXES):
        return _from_file(Path(text))
    first, *rest = parts = text.split(",")
    config = NAMES.get(first)
    values: dict[str, Any] = {}
    for part in parts if config is None else rest:
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise UnknownNetwork(
                f"{text!r} names no network; choose study, spine, a SPINE configuration file "
                "(.yaml), or settings such as filters=32,depth=6,activation=leaky_relu:0.33"
            )
        if name in _COUNTS:
            values[_COUNTS[name]] = _count(name, value)
        elif name == "activation":
            values["slope"] = _slope_of(value)
        elif name in ("eps", "momentum"):
            values[name] = _fraction(name, value)
        else:
            known = ", ".join((*_COUNTS, "activation", "eps", "momentum"))
            raise UnknownNetwork(f"a network has no setting {name!r}; choose from {known}")
    return dataclasses.replace(config or NAMES["study"], **values)


def _slope_of(text: str) -> float:
    """Return the slope of an activation, ``relu`` or ``leaky_relu:SLOPE``."""
    kind, _, slope = text.partition(":")
    if text == "relu":
        return 0.0
    if kind != "leaky_relu" or not slope:
        raise UnknownNetwork(f"activation must be relu or leaky_relu:SLOPE, not {text!r}")
    return _fraction("the slope of leaky_relu", slope, least=0.0)


def _from_file(path: Path) -> UResNetConfig:
    """Return the network of the ``uresnet`` section of a SPINE configuration file."""
    content = _content(path)
    sections = list(_sections(content))
    if not sections:
        raise UnknownNetwork(f"{path} has no section uresnet; give the configuration of a UResNet")
    networks = {_from_section(section, str(path)) for section in sections}
    if len(networks) > 1:
        raise UnknownNetwork(
            f"{path} has sections uresnet of {len(networks)} networks; give a file with one"
        )
    return networks.pop()


def _content(path: Path) -> Any:
    """Return the content of a configuration file; SPINE itself reads one made of several files."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UnknownNetwork(f"there is no file {path}; give a SPINE configuration file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownNetwork(f"{path} cannot be read: {error}") from None
    except yaml.constructor.ConstructorError:  # a tag such as !include
        return _read_by_spine(path)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise UnknownNetwork(f"{path} cannot be read as YAML: {first}") from None
    if isinstance(content, Mapping) and not _SPINE_DIRECTIVES.isdisjoint(content):
        return _read_by_spine(path)
    return content


def _read_by_spine(path: Path) -> Any:
    """Return the content of a configuration file with SPINE's tags and directives."""
    try:
        from spine.config import load_config_file
    except ImportError:
        raise UnknownNetwork(
            f"{path} has tags or directives of SPINE such as include, which SPINE reads: "
            "install the extra spine"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing descriptions and versions
            return load_config_file(str(path), download=False)
    except Exception as error:  # SPINE's errors, and those of its YAML loader
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownNetwork(f"SPINE cannot read {path}: {first}") from None


def _sections(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each mapping called ``uresnet``, at any depth."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name == "uresnet" and isinstance(value, Mapping):
                yield value
            else:
                yield from _sections(value)
    elif isinstance(content, list):
        for value in content:
            yield from _sections(value)


def _from_section(section: Mapping[str, Any], path: str) -> UResNetConfig:
    """Return the network of a ``uresnet`` section, whose names and defaults are SPINE's."""
    values: dict[str, Any] = {"slope": 0.01, "eps": 1e-5, "momentum": 0.1}
    for name, value in section.items():
        if name in _SPINE_COUNTS:
            values[_SPINE_COUNTS[name]] = _count(f"{path}: {name}", value)
        elif name == "activation":
            values["slope"] = _spine_slope(value, path)
        elif name == "norm_layer":
            values |= _spine_norm(value, path)
        elif name in _SPINE_FIXED:
            if value != _SPINE_FIXED[name]:
                raise UnknownNetwork(
                    f"{path}: {name}: {value} is not supported; the networks here have "
                    f"{name}: {_yaml(_SPINE_FIXED[name])}"
                )
        elif name not in _SPINE_IGNORED:
            raise UnknownNetwork(f"{path}: {name} is not a setting of the networks here")
    missing = [name for name in _SPINE_COUNTS if _SPINE_COUNTS[name] not in values]
    if missing and missing != ["num_input"]:
        raise UnknownNetwork(f"{path}: the section uresnet has no {missing[0]}; add it")
    return UResNetConfig(**values)


def _spine_slope(activation: Any, path: str) -> float:
    name, settings = _named(activation, f"{path}: activation")
    known = {"relu": {"inplace"}, "lrelu": {"inplace", "negative_slope"}}
    if name not in known or settings.keys() - known[name]:
        raise UnknownNetwork(
            f"{path}: the activation {_text(name, settings)} is not supported; the networks here "
            "have relu or lrelu with a negative_slope"
        )
    if name == "relu":
        return 0.0
    slope = settings.get("negative_slope", 0.01)
    return _fraction(f"{path}: negative_slope", slope, least=0.0)


def _spine_norm(norm: Any, path: str) -> dict[str, float]:
    name, settings = _named(norm, f"{path}: norm_layer")
    fixed = {"affine": True, "track_running_stats": True}
    others = {
        key: value
        for key, value in settings.items()
        if key not in ("eps", "momentum") and value != fixed.get(key)
    }
    if name != "batch_norm" or others:
        raise UnknownNetwork(
            f"{path}: the norm_layer {_text(name, others)} is not supported; the networks here "
            "have batch_norm with eps and momentum"
        )
    return {
        "eps": _fraction(f"{path}: eps", settings.get("eps", 1e-5)),
        "momentum": _fraction(f"{path}: momentum", settings.get("momentum", 0.1)),
    }


def _named(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Split a layer into its name (in newer versions of SPINE, ``provider``) and its settings."""
    if isinstance(value, str):
        return value, {}
    settings = dict(value) if isinstance(value, Mapping) else {}
    name = settings.pop("provider" if "provider" in settings else "name", None)
    if not isinstance(name, str):
        raise UnknownNetwork(f"{what} must be a name, or a mapping with a name, not {value!r}")
    return name, settings


def _text(name: str, settings: Mapping[str, Any]) -> str:
    return f"{name} with {', '.join(map(str, settings))}" if settings else name


def _yaml(value: Any) -> str:
    return {None: "null", False: "false"}.get(value, str(value))


def _count(name: str, value: Any) -> int:
    """Return a whole number of at least 1 that a text or a file gives."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise UnknownNetwork(f"{name} must be a whole number of at least 1, not {value!r}")
    return number


def _fraction(name: str, value: Any, least: float = math.ulp(0.0)) -> float:
    """Return a number up to 1 that a text or a file gives; YAML reads 1e-4 as a text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= 1 or isinstance(value, bool):
        limits = "from 0 to 1" if least == 0 else "above 0, at most 1"
        raise UnknownNetwork(f"{name} must be a number {limits}, not {value!r}")
    return number
