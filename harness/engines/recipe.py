"""Recipes of engines: how each is installed, as data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Self

from harness.errors import BadInput


@dataclass(frozen=True)
class Recipe:
    """How an engine is installed; one TOML file of ``backends/recipes`` each.

    Attributes
    ----------
    engine : str
        Its name in the registry.
    version : str
        The version to install; empty for the newest.
    imports : str
        The module of its package.
    python : tuple of str
        First and last version of Python that it supports.
    requires : tuple of str
        Packages for pip.
    devices : tuple of str
        Devices on which it can run.
    torch : str
        The version of torch that it needs; empty for any.
    options : tuple of str
        Options of ``pip install``.
    build : mapping
        ``requires``, ``programs``, ``libraries``, ``headers`` (with the system packages that have
        them), ``options``, ``environment``, ``minutes`` of an engine that is compiled, ``edits`` of
        its source (``file``, ``old``, ``new``), ``nvcc``, the first and last version of the
        compiler that it is for, and ``torch``, the last version that it compiles with; empty for
        wheels. Variables of the user precede ``environment``.
    source : mapping
        ``repository`` and ``commit`` of an engine that no package index has, and the ``folder`` of
        its package if it is not the repository itself.
    cuda : tuple of str
        Versions of CUDA for which the engine has builds of their own.
    """

    engine: str
    version: str
    imports: str
    python: tuple[str, str]
    requires: tuple[str, ...]
    devices: tuple[str, ...]
    torch: str = ""
    options: tuple[str, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    cuda: tuple[str, ...] = ()

    @classmethod
    def find(
        cls, requirement: str, cuda: str = "", *, torch: str = "", own_source: bool = False
    ) -> Self:
        """Return the recipe for ``NAME`` or ``NAME==VERSION``.

        Parameters
        ----------
        requirement : str
            The engine.
        cuda : str
            The version of CUDA; empty for the CPU, or for an engine that uses torch's CUDA.
        torch : str
            The version of torch; empty for that of the recipe.
        own_source : bool
            Whether the user gives the source: then any version can be that of an engine which is
            built from its repository.

        Raises
        ------
        BadInput
            If there is no such recipe.
        """
        found = re.fullmatch(r"([a-z0-9-]+)(?:==([A-Za-z0-9.+!-]+))?", requirement)
        name, version = found.groups() if found else (requirement, None)
        known = names()
        if name not in known:
            raise BadInput(f"there is no recipe for {name!r}; choose one of {', '.join(known)}")
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
        values = tomllib.loads(text)
        variants = values.pop("cuda", {})
        build = values.get("build", {})
        with_cuda = build.pop("cuda", {})
        if cuda:
            if variants and cuda not in variants:
                offered = ", ".join(variants)
                raise BadInput(f"{name} has no build for CUDA {cuda}; choose one of {offered}")
            values |= variants.get(cuda, {"devices": ["cuda"]})
            for key, more in with_cuda.items():
                had = build.get(key, type(more)())
                build[key] = had | more if isinstance(more, dict) else had + more
        if torch and values.get("torch", torch) != torch:
            raise BadInput(f"{name} needs torch {values['torch']}, not {torch}")
        version = version or values["version"]
        if "source" in values and version != values["version"] and not own_source:
            raise BadInput(
                f"the recipe builds {name} {values['version']}; give the source of {version} with "
                "--source"
            )
        first, last = map(str, values["python"])
        return cls(
            engine=name,
            version=version,
            imports=values["imports"],
            python=(first, last),
            requires=tuple(need.format(version=version) for need in values["requires"]),
            devices=tuple(values["devices"]),
            torch=torch or values.get("torch", ""),
            options=tuple(values.get("options", ())),
            build=values.get("build", {}),
            source=values.get("source", {}),
            cuda=tuple(variants),
        )


def names() -> list[str]:
    """Return the engines that have a recipe."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".toml"))


def _folder() -> Any:
    return resources.files("backends") / "recipes"
