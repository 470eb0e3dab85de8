"""Suites: a question, and the grid of cells that answers it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from backends.registry import BUILT_IN
from harness.errors import BadInput
from harness.spec.cell import SIZES, STACKS, Cell, EventSpec, ModelSpec, layers_of

ENGINES = tuple(BUILT_IN)
"""All built-in engines; one that is not installed gets a record with the reason."""

DENSE = tuple(name for name in ENGINES if name.startswith("dense"))
"""The engines that compute on all voxels."""

TYPICAL_SEED = 4
"""Draws typical events: at every size, for batch 1 and 4, the sites of a batch are within 30 % of
what the mean of the packed sample would give. Most seeds draw an event of half or twice the mean.
"""


@dataclass(frozen=True)
class Grid:
    """All combinations of some values.

    ``precisions`` are used on a device unless the user names one; without them, fp32. ``count`` is
    that of ``EventSpec``.
    """

    backends: tuple[str, ...] = ENGINES
    sizes: tuple[int, ...] = SIZES
    batches: tuple[int, ...] = (1, 4)
    phases: tuple[str, ...] = ("forward",)
    maps: tuple[str, ...] = ("cold", "warm")
    dim: int = 3
    model: ModelSpec = field(default_factory=ModelSpec)
    seed: int = TYPICAL_SEED
    layers: tuple[str, ...] = ("",)
    precisions: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Suite:
    """A grid of cells, or several, that answers one question.

    Attributes
    ----------
    name : str
        As in ``harness run NAME``.
    question : str
        The question that it answers.
    grids : tuple of Grid
        They do not depend on the installed engines, so that runs of all machines can be compared.
    budget : float
        Seconds of sampling per cell and round, unless the user gives another number.
    needs_labels : bool
        Whether events without labels leave its question open.
    """

    name: str
    question: str
    grids: tuple[Grid, ...]
    budget: float = 10.0
    needs_labels: bool = False

    @property
    def sizes(self) -> list[int]:
        """The image sizes of all grids, ascending."""
        return sorted({size for grid in self.grids for size in grid.sizes})

    @property
    def engines(self) -> list[str]:
        """The engines of all grids, each once, without options."""
        named = [parse_engine(text)[0] for grid in self.grids for text in grid.backends]
        return list(dict.fromkeys(named))

    def cells(
        self,
        *,
        device: str = "cpu",
        precision: str = "",
        backends: Sequence[str] = (),
        sizes: Sequence[int] = (),
        batches: Sequence[int] = (),
        network: ModelSpec | None = None,
    ) -> list[Cell]:
        """List the cells.

        Parameters
        ----------
        device : str
            Where to measure.
        precision : str
            The arithmetic; empty for those of the grid.
        backends : sequence of str
            Engines instead of the grid's, ``name`` or ``name:option=value,…``.
        sizes : sequence of int
            Only these of the grid's sizes.
        batches : sequence of int
            Batch sizes instead of the grid's.
        network : ModelSpec, optional
            The network instead of the grid's.

        Raises
        ------
        BadInput
            If the suite has no such size or no UResNet, or a value has no meaning.
        """
        unknown = [size for size in sizes if size not in self.sizes]
        if unknown:
            has = ", ".join(map(str, self.sizes))
            raise BadInput(
                f"the suite {self.name} has no images of {unknown[0]} px; choose from {has}"
            )
        found: dict[Cell, None] = {}
        for grid in self.grids:
            if network is not None:
                grid = _with_network(grid, network, self.name)
            for backend, arithmetic, size, batch, phase, state, layer in product(
                self._engines(grid, backends),
                (precision,) if precision else grid.precisions or ("fp32",),
                [size for size in grid.sizes if not sizes or size in sizes],
                batches or grid.batches,
                grid.phases,
                grid.maps,
                grid.layers,
            ):
                name, options = parse_engine(backend)
                cell = Cell(
                    suite=self.name,
                    backend=name,
                    options=options,
                    device=device,
                    precision=arithmetic,
                    dim=grid.dim,
                    size=size,
                    batch=batch,
                    phase=phase,
                    map=state,
                    model=grid.model,
                    events=EventSpec(seed=grid.seed, count=grid.count),
                    layer=layer,
                )
                found[cell] = None
        return list(found)

    def _engines(self, grid: Grid, requested: Sequence[str]) -> Sequence[str]:
        """Return the requested engines of a grid; those of third parties are in every grid."""
        if not requested:
            return grid.backends
        return [
            engine
            for engine in requested
            if parse_engine(engine)[0] in grid.backends or parse_engine(engine)[0] not in ENGINES
        ]


def _with_network(grid: Grid, network: ModelSpec, suite: str) -> Grid:
    """Return a grid with another network; single layers are those of that network."""
    if set(grid.phases) & set(STACKS):
        raise BadInput(f"the suite {suite} measures no UResNet; leave out --network")
    kinds = {layer.rpartition("-")[0] for layer in grid.layers if layer}
    layers = tuple(layer for layer in layers_of(network) if layer.rpartition("-")[0] in kinds)
    return replace(grid, model=network, layers=layers or grid.layers)


def parse_engine(text: str) -> tuple[str, dict[str, str]]:
    """Split ``name:option=value,option=value`` into the engine's name and its options.

    Raises
    ------
    BadInput
        If an option has no value.
    """
    name, _, rest = text.partition(":")
    options = {}
    for part in rest.split(",") if rest else []:
        option, equals, value = part.partition("=")
        if not (name and option and equals and value):
            raise BadInput(f"{text!r} is not an engine; write NAME or NAME:OPTION=VALUE")
        options[option] = value
    return name, options


def find_suites() -> dict[str, Suite]:
    """Return the suites by name: every ``SUITE`` of a module in the package ``suites``.

    The package is looked up by name, as a plug-in is: suites import the harness, not the reverse.
    """
    return {suite.name: suite for suite in _announced()}


def _announced() -> Iterator[Suite]:
    package = importlib.import_module("suites")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        suite = getattr(importlib.import_module(f"suites.{module.name}"), "SUITE", None)
        if isinstance(suite, Suite):
            yield suite


def find_suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises
    ------
    BadInput
        If there is none.
    """
    suites = find_suites()
    if name not in suites:
        raise BadInput(f"there is no suite {name!r}; choose one of {', '.join(suites)}")
    return suites[name]
