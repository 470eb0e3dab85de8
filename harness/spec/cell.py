"""One thing to measure: a frozen cell, its canonical JSON, and the hash that is its name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Self

from backends.capabilities import PRECISIONS
from harness.errors import BadInput
from harness.spec.fields import Field

DEVICES = ("cpu", "cuda")
STACKS = ("submanifold", "ordinary")
"""Forward passes through ``model.depth`` convolutions of one kind instead of the UResNet."""

LAYERS = ("submanifold", "strided", "inverse")
"""Convolutions that can be measured by themselves, at one level of the UResNet."""

LAYER_PHASES = ("forward", "input-gradient", "weight-gradient", "map")
"""Phases of a single convolution; ``map`` is the construction of its kernel map."""

PHASES = ("forward", "step", *STACKS, *LAYER_PHASES[1:])
MAPS = ("first", "cold", "warm")
SIZES = (192, 512, 768)


RANDOM = "random"
"""Name of the seeded initial weights of an untrained network."""

TRAINED = "trained"
"""Name of the packaged weights of the study's network, trained on simulated events."""


@dataclass(frozen=True)
class ModelSpec:
    """The UResNet: the study's is the default."""

    filters: Annotated[int, Field("Channels of the finest level.", least=1, most=2**16)] = 16
    depth: Annotated[int, Field("Levels.", least=1, most=24)] = 5
    reps: Annotated[int, Field("Residual blocks per level.", least=1, most=2**16)] = 2
    classes: Annotated[int, Field("Classes.", least=1, most=2**16)] = 5
    inputs: Annotated[
        int,
        Field(
            "Input features per voxel: the energy, its square root, its cube root and so on. Left "
            "out of the JSON where it is 1.",
            least=1,
            most=2**16,
        ),
    ] = 1
    slope: Annotated[
        float,
        Field(
            "Factor of negative values in the activations. Left out of the JSON where it is 0, "
            "for ReLU.",
            least=0,
            most=1,
        ),
    ] = 0.0
    eps: Annotated[
        float,
        Field("Of the batch norms. Left out of the JSON where it is 1e-4.", above=0, most=1),
    ] = 1e-4
    momentum: Annotated[
        float,
        Field("Of the batch norms. Left out of the JSON where it is 0.01.", above=0, most=1),
    ] = 0.01

    def __post_init__(self) -> None:
        for name in ("filters", "depth", "reps", "classes", "inputs"):
            most = 24 if name == "depth" else 2**16
            _natural(f"model.{name}", getattr(self, name), most=most)
        for name in ("slope", "eps", "momentum"):
            value = _share(f"model.{name}", getattr(self, name), zero=name == "slope")
            object.__setattr__(self, name, value)  # 0 and 0.0 are the same in JSON, too

    @classmethod
    def of(cls, config: Any) -> Self:
        """Return the specification of a ``backends.uresnet.UResNetConfig``."""
        names = {entry.name: entry.name for entry in fields(cls)} | {"inputs": "in_channels"}
        return cls(**{name: getattr(config, theirs) for name, theirs in names.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the network as a record holds it, without younger fields at their default."""
        values = asdict(self)
        return {
            name: value
            for name, value in values.items()
            if name in _ALWAYS_STORED or value != getattr(ModelSpec, name)
        }

    @property
    def label(self) -> str:
        """The network as ``--network`` takes it: a name, or what differs from the study's."""
        if self in NETWORKS.values():
            return next(name for name, network in NETWORKS.items() if network == self)
        differing = {
            name: value for name, value in asdict(self).items() if value != getattr(ModelSpec, name)
        }
        if "slope" in differing:
            differing["activation"] = f"leaky_relu:{differing.pop('slope'):g}"
        return ",".join(f"{name}={value}" for name, value in differing.items())


_ALWAYS_STORED = ("filters", "depth", "reps", "classes")


@dataclass(frozen=True)
class EventSpec:
    """Which events: a set by name, the hash of its bytes, and the seed that picks the batch."""

    set: Annotated[str, Field("``sample``, or the name of a file of events.")] = "sample"
    sha256: Annotated[
        str, Field("Hash of the set's bytes for this size; empty where it is not known yet.")
    ] = ""
    seed: Annotated[
        int,
        Field(
            "Picks the events of the batch, as ``harness.events.batches.benchmark_batch`` does.",
            least=0,
        ),
    ] = 0
    count: Annotated[
        int,
        Field(
            "Events of the set, in the order of the seed, whose labels make the accuracy; 0, left "
            "out of the JSON, for the events of the batch.",
            "events",
            least=0,
        ),
    ] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.set, str) or not self.set:
            raise BadInput("events.set must name a set of events, for example 'sample'")
        if not isinstance(self.sha256, str):
            raise BadInput("events.sha256 must be a text of hexadecimal digits, or empty")
        _natural("events.seed", self.seed, least=0)
        _natural("events.count", self.count, least=0)

    @property
    def index(self) -> int | None:
        """Index of the single event that the name of the set selects, as in ``file.root[2]``."""
        head, bracket, tail = self.set.rpartition("[")
        return int(tail[:-1]) if head and bracket and tail[:-1].isdecimal() else None


@dataclass(frozen=True)
class Question:
    """All of a cell but the suite and the engine: engines compete on the same question.

    The fields are those of ``Cell``.
    """

    device: str
    precision: str
    dim: int
    size: int
    batch: int
    phase: str
    map: str
    model: ModelSpec
    events: EventSpec
    layer: str
    weights: str

    @property
    def order(self) -> tuple[str | int, ...]:
        """Sorting key for tables."""
        return (
            *(self.device, self.precision, self.dim, self.phase, self.map),
            *(self.size, self.batch, self.events.seed),
        )

    @property
    def label(self) -> str:
        """The question in one short line."""
        model = "" if self.model == ModelSpec() else f" {self.model.label}"
        flat = "" if self.dim == 3 else f" {self.dim}D"
        events = "" if self.events.set == "sample" else f" {self.events.set}"
        layer = f" {self.layer}" if self.layer else ""
        weights = "" if self.weights == RANDOM else f" {self.weights.partition('@')[0]}"
        return (
            f"{self.size} px{flat} x{self.batch}{layer} {self.phase} {self.map} {self.precision} "
            f"{self.device}{model}{weights}{events}"
        )

    @property
    def description(self) -> str:
        """The question in words."""
        network = "" if self.model == ModelSpec() else f", network {self.model.label}"
        events = "" if self.events.set == "sample" else f", {self.events.set}"
        layer = f"{self.layer}, " if self.layer else ""
        name = self.weights.partition("@")[0]
        weights = "" if name == RANDOM else f", {name} weights"
        return (
            f"{self.size} px{', 2D' if self.dim == 2 else ''}, batch {self.batch}, {layer}"
            f"{self.phase}, {self.map} map, {self.precision} on {self.device}{network}{weights}"
            f"{events}"
        )


@dataclass(frozen=True)
class Cell:
    """One combination to measure.

    Raises
    ------
    BadInput
        If a field has no meaning.
    """

    suite: Annotated[str, Field("The suite that the cell belongs to.")]
    backend: Annotated[str, Field("The engine's name in ``backends.registry``.")]
    size: Annotated[int, Field("Voxels per side.", "voxels", least=1, most=2**21)]
    batch: Annotated[int, Field("Events per call.", "events", least=1, most=2**31)]
    phase: Annotated[
        str,
        Field(
            "``forward`` (inference) or ``step`` (one optimisation step) of the UResNet; "
            "``submanifold`` or ``ordinary``: a forward pass through ``model.depth`` convolutions "
            "of that kind; ``forward``, ``input-gradient``, ``weight-gradient`` or ``map`` of a "
            "single layer.",
            choices=PHASES,
        ),
    ]
    map: Annotated[
        str,
        Field(
            "State of the kernel map: ``first`` call of the process, ``cold`` (new coordinates, "
            "built inside the timed region) or ``warm`` (reused).",
            choices=MAPS,
        ),
    ]
    device: Annotated[str, Field("Where the engine runs.", choices=DEVICES)] = "cpu"
    precision: Annotated[str, Field("The arithmetic.", choices=PRECISIONS)] = "fp32"
    dim: Annotated[int, Field("Spatial dimensions.", choices=(2, 3))] = 3
    options: Annotated[
        Mapping[str, str], Field("The engine's options, an algorithm for example.")
    ] = field(default_factory=dict, hash=False)
    model: Annotated[ModelSpec, Field("The network.")] = field(default_factory=ModelSpec)
    events: Annotated[EventSpec, Field("The events.")] = field(default_factory=EventSpec)
    layer: Annotated[
        str,
        Field(
            "``KIND-LEVEL``, as in ``strided-2``: this convolution alone instead of the UResNet, "
            "with the channels and sites of that level. Empty, and left out of the JSON, for a "
            "whole network."
        ),
    ] = ""
    weights: Annotated[
        str,
        Field(
            "Weights of the UResNet: ``random``, left out of the JSON, for seeded initial weights; "
            "otherwise the name of a file of weights, ``@`` and the first digits of its SHA-256, "
            "as in ``mine.npz@0123456789ab``."
        ),
    ] = RANDOM

    def __post_init__(self) -> None:
        for name in ("suite", "backend"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise BadInput(f"{name} must be a name, not {value!r}")
        _one_of("device", self.device, DEVICES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("phase", self.phase, PHASES)
        _one_of("map", self.map, MAPS)
        _one_of("dim", self.dim, (2, 3))
        _natural("batch", self.batch, most=2**31)
        _natural("size", self.size, least=2 ** (self.model.depth - 1), most=2**21)
        if not isinstance(self.options, Mapping) or not all(
            isinstance(word, str) for pair in self.options.items() for word in pair
        ):
            raise BadInput(f"options must map names to texts, not {self.options!r}")
        if not isinstance(self.weights, str) or not self.weights:
            raise BadInput(f"weights must be a name, not {self.weights!r}")
        self._check_layer()

    def _check_layer(self) -> None:
        """Make sure that a single layer exists in the network, and that it has the phase."""
        if not self.layer:
            if self.phase in LAYER_PHASES[1:]:
                raise BadInput(f"the phase {self.phase} is of a single layer; name it in 'layer'")
            return
        _one_of("phase of a layer", self.phase, LAYER_PHASES)
        layers = layers_of(self.model)
        if self.layer not in layers:
            raise BadInput(f"layer must be one of {', '.join(layers)}, not {self.layer!r}")
        state = "cold" if self.phase == "map" else "warm"
        if self.map != state:
            raise BadInput(f"a layer's phase {self.phase} is measured with map {state!r}")

    @property
    def layer_kind(self) -> str:
        """The kind of the single convolution; empty for a network."""
        return self.layer.rpartition("-")[0]

    @property
    def layer_level(self) -> int:
        """The level of the single convolution: strides above the finest sites on its finer side."""
        return int(self.layer.rpartition("-")[2])

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a record holds it."""
        values = asdict(self)
        values["options"] = dict(self.options)
        values["model"] = self.model.to_json()
        # Fields that are younger than stored cells are left out where they change nothing, so that
        # the cells keep their names.
        if not self.layer:
            del values["layer"]
        if not self.events.count:
            del values["events"]["count"]
        if self.weights == RANDOM:
            del values["weights"]
        return values

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Rebuild a cell from a record or a file.

        Raises
        ------
        BadInput
            If a field is missing, unknown or without meaning.
        """
        kept = _known("a cell", values, cls)
        for name, part in (("model", ModelSpec), ("events", EventSpec)):
            if name in kept:
                kept[name] = part(**_known(name, kept[name], part))
        try:
            return cls(**kept)
        except TypeError as error:
            raise BadInput(f"this cell is incomplete: {error}") from None

    @property
    def canonical(self) -> str:
        """The cell as JSON that is the same text for the same cell, on every machine."""
        return canonical(self.to_json())

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        return digest(self.canonical)

    @property
    def engine(self) -> str:
        """The engine with its options, for people."""
        options = "".join(f" {key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.backend}{options}"

    @property
    def question(self) -> Question:
        """The question on which engines are compared."""
        return Question(**{entry.name: getattr(self, entry.name) for entry in fields(Question)})

    @property
    def title(self) -> str:
        """The engine and the question in one short line."""
        return f"{self.engine} {self.question.label}"


def layers_of(model: ModelSpec) -> list[str]:
    """List the single convolutions of a network, the finest level first."""
    return [
        f"{kind}-{level}"
        for level in range(model.depth)
        for kind in LAYERS
        if kind == "submanifold" or level + 1 < model.depth
    ]


def canonical(values: Any) -> str:
    """Write JSON with sorted keys and without blanks."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def digest(text: str) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _known(what: str, values: Any, kind: type) -> dict[str, Any]:
    """Return a copy of the values after making sure that each is a field of the class."""
    if not isinstance(values, Mapping):
        raise BadInput(f"{what} must be a JSON object, not {type(values).__name__}")
    names = {entry.name for entry in fields(kind)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise BadInput(f"{what} has no field {unknown[0]!r}; it has {', '.join(sorted(names))}")
    return dict(values)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        listed = ", ".join(str(choice) for choice in allowed)
        raise BadInput(f"{name} must be one of {listed}, not {value!r}")


def _share(name: str, value: Any, *, zero: bool) -> float:
    """Return a number from 0 or above 0 to 1 as a float."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not usable or not (0 < value <= 1 or (zero and value == 0)):
        limits = "from 0 to 1" if zero else "above 0, at most 1"
        raise BadInput(f"{name} must be a number {limits}, not {value!r}")
    return float(value)


def _natural(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = (
            f"at least {least}"
            if not isinstance(value, int) or value <= most
            else f"at most {most}"
        )
        raise BadInput(f"{name} must be a whole number of {limit}, not {value!r}")


NETWORKS = {"study": ModelSpec(), "spine": ModelSpec(filters=32, slope=0.33)}
"""The network of the 2018 study, and the one of SPINE's configurations."""
