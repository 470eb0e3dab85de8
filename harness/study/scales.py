"""The four scales of the study: what each one trains, tests and measures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.errors import BadInput
from harness.run.sampling import StopRule
from harness.spec.cell import ModelSpec
from harness.study.plan import TrainingSettings

FORWARD, BOTH = ("forward",), ("forward", "step")

SPARSE, DENSE, AS_PUBLISHED = "sparse", "dense", "dense-study"
"""Roles in a training: the sparse engine, the dense network of the same function, and the dense
network of the 2018 study."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out events for a test of a trained network.

    Attributes
    ----------
    size : int
        Voxels per side.
    events : int
        Number of events.
    michel : bool
        Whether the events are simulated with many stopping muons; otherwise they are from the
        packed sample.
    """

    size: int
    events: int
    michel: bool = False


@dataclass(frozen=True)
class Training(TrainingSettings):
    """One training of a scale, independent of the engine and of the folder of a study.

    ``harness.study.definition.Study.plan`` returns its plan in one study.

    Attributes
    ----------
    name : str
        Name of its folder and of its curve.
    role : str
        ``SPARSE``, ``DENSE`` or ``AS_PUBLISHED``.
    size, crop, dim, classes : int
        As for ``harness.study.views.View``.
    tests : tuple of HeldOut
        Tests after the training; their events get the crop, plane and classes of the training.
    """

    name: str
    role: str
    size: int
    crop: int = 0
    dim: int = 3
    classes: int = 5
    tests: tuple[HeldOut, ...] = ()


@dataclass(frozen=True)
class Costs:
    """Cells whose time and memory a scale measures.

    A forward pass and a training step are those of the 2018 study.

    Attributes
    ----------
    table : tuple of (size, batch)
        Columns of Table II.
    dense : tuple of (side, batch, phases)
        Cubes, cut out of 192 px events, for the comparison of dense and sparse networks.
    planes : tuple of (size, batch)
        Images for the same comparison in two dimensions.
    batches : tuple of int
        Events per batch at ``batch_size`` px, in addition to those of the table.
    volumes : tuple of int
        Voxels per side of the volumes in which the same events are embedded.
    overlays : tuple of int
        Numbers of events overlaid in one volume of ``overlay_size``.
    occupancies : tuple of float
        Active fractions of a cube of ``filled_side``, for the crossover of dense and sparse.
    batch_size : int
        Voxels per side for ``batches``.
    overlay_size : int
        Voxels per side for ``overlays``.
    filled_side : int
        Voxels per side for ``occupancies``.
    phases : tuple of str
        Timed phases, except in ``dense``.
    rule : StopRule
        Stop rule of the samples of a cell.
    warm_up : float
        Maximum duration of the warm-up in seconds.
    timeout : float
        Maximum time for one answer of a worker in seconds.
    checked_events : int
        Largest batch that is compared with the float64 reference; for larger batches the reference
        takes too much memory or time.
    """

    table: tuple[tuple[int, int], ...]
    dense: tuple[tuple[int, int, tuple[str, ...]], ...]
    planes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    volumes: tuple[int, ...]
    overlays: tuple[int, ...]
    occupancies: tuple[float, ...]
    batch_size: int = 192
    overlay_size: int = 512
    filled_side: int = 32
    phases: tuple[str, ...] = BOTH
    rule: StopRule = field(default_factory=lambda: StopRule(0.03, 3, 20, 2.0))
    warm_up: float = 2.0
    timeout: float = 150.0
    checked_events: int = 4


@dataclass(frozen=True)
class Scale:
    """One size of the study.

    Attributes
    ----------
    name : str
        Name on the command line.
    expected : str
        Expected duration, and the machine that it refers to.
    device : str
        ``cpu`` or ``cuda``.
    mixtures : tuple of (size, events)
        Numbers of simulated training events.
    michel_events : int
        Number of simulated held-out events with many stopping muons, at 192 px.
    trainings : tuple of Training
        Trainings in order.
    costs : Costs
        Cells whose costs are measured.
    model : ModelSpec
        Size of the network.
    """

    name: str
    expected: str
    device: str
    mixtures: tuple[tuple[int, int], ...]
    michel_events: int
    trainings: tuple[Training, ...]
    costs: Costs
    model: ModelSpec = field(default_factory=ModelSpec)

    def with_minutes(self, minutes: float) -> Scale:
        """Return the scale with another duration of its first training, in minutes."""
        first = replace(self.trainings[0], seconds=60 * minutes)
        return replace(self, trainings=(first, *self.trainings[1:]))

    def describe(self) -> str:
        """Return the expected time, the events and the trainings of the scale, one per line."""
        events = " and ".join(f"{count:,} of {size} px" for size, count in self.mixtures)
        lines = [
            f"scale {self.name}: {self.expected}",
            f"simulates {events} for training and {self.michel_events:,} with many Michel "
            "electrons for tests; further tests use the packed sample",
        ]
        for training in self.trainings:
            limit = f"{training.steps:,} steps"
            if training.seconds:
                limit = f"{training.seconds / 60:g} minutes, at most {limit},"
            cut = f" cut to {training.crop} px" if training.crop else ""
            plane = " in 2D" if training.dim == 2 else ""
            lines.append(
                f"trains {training.name}: {limit} of {training.batch} events of "
                f"{training.size} px{cut}{plane}, {training.classes} classes, with "
                f"{training.optimiser.title()}"
            )
        return "\n".join(lines)


_PAPER_TABLE = ((192, 4), (192, 64), (512, 64), (768, 64))
_ALL_TESTS = (HeldOut(192, 256), HeldOut(512, 96), HeldOut(768, 96))


def _pair(
    crop: int, dim: int, batch: int, steps: int, every: int, events: int, roles: tuple[str, ...]
) -> tuple[Training, ...]:
    """Return dense and sparse trainings on the same batches, from the same weights."""
    where = f"{crop or 192} px{' 2D' if dim == 2 else ''}"
    return tuple(
        Training(
            f"{role} {where}",
            role,
            192,
            batch=batch,
            steps=steps,
            crop=crop,
            dim=dim,
            evaluate_every=every,
            held_out_events=events,
            tests=(HeldOut(192, events),),
        )
        for role in roles
    )


SMOKE = Scale(
    "smoke",
    "about two minutes on two cores; a test of every part, its accuracies have no meaning",
    "cpu",
    mixtures=((192, 64),),
    michel_events=16,
    trainings=(
        Training(
            "sparse 192 px",
            SPARSE,
            192,
            batch=4,
            steps=12,
            evaluate_every=6,
            held_out_events=4,
            tests=(HeldOut(192, 8), HeldOut(512, 2), HeldOut(768, 2), HeldOut(192, 8, michel=True)),
        ),
        *_pair(16, 3, 4, 12, 6, 8, (SPARSE, DENSE)),
        *_pair(0, 2, 2, 4, 2, 4, (SPARSE, DENSE)),
        Training(
            "sparse 2 classes", SPARSE, 192, batch=4, steps=4, classes=2, tests=(HeldOut(512, 2),)
        ),
    ),
    costs=Costs(
        table=((192, 4),),
        dense=((16, 4, FORWARD),),
        planes=((192, 1),),
        batches=(1,),
        volumes=(192, 512),
        overlays=(1, 2),
        occupancies=(0.001, 0.3),
        overlay_size=192,
        filled_side=16,
        rule=StopRule(0.2, 3, 3, 0.2),
        timeout=60.0,
        checked_events=1,
        phases=FORWARD,
    ),
    model=ModelSpec(filters=4, depth=3),
)

LAPTOP = Scale(
    "laptop",
    "under an hour on two cores",
    "cpu",
    mixtures=((192, 8192), (512, 1024)),
    michel_events=512,
    trainings=(
        Training(
            "sparse 192 px",
            SPARSE,
            192,
            batch=16,
            steps=200_000,
            seconds=1200.0,
            evaluate_every=150,
            held_out_events=128,
            optimiser="muon",  # Adam needs more than twice the events for the same accuracy
            learning_rate=6e-3,
            warm_up=100,
            average=0.9975,
            tests=(*_ALL_TESTS, HeldOut(192, 512, michel=True)),
        ),
        *_pair(32, 3, 4, 200, 50, 256, (SPARSE, DENSE, AS_PUBLISHED)),
        *_pair(0, 2, 4, 200, 50, 128, (SPARSE, DENSE)),
        Training(
            "sparse 2 classes",
            SPARSE,
            512,
            batch=4,
            steps=200_000,
            seconds=180.0,
            classes=2,
            evaluate_every=200,
            held_out_events=32,
            tests=(HeldOut(512, 96),),
        ),
    ),
    costs=Costs(
        table=_PAPER_TABLE,
        dense=((32, 4, BOTH), (64, 4, BOTH), (192, 1, FORWARD)),
        planes=((192, 4),),
        batches=(1, 8, 32),
        volumes=(192, 256, 384, 768),
        overlays=(1, 2, 4, 8, 16),
        occupancies=(0.001, 0.01, 0.05, 0.2, 1.0),
    ),
)

_GPU_COSTS = Costs(
    table=_PAPER_TABLE,
    dense=tuple(
        (side, batch, BOTH)
        for side, batch in ((32, 4), (64, 4), (96, 4), (128, 4), (192, 1), (192, 4))
    ),
    planes=((192, 4), (512, 4)),
    batches=(1, 2, 8, 16, 32),
    volumes=(192, 256, 384, 512, 768),
    overlays=(1, 2, 4, 8, 16, 32),
    occupancies=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    filled_side=64,
    rule=StopRule(0.01, 7, 100, 10.0),
    timeout=600.0,
)

GPU = Scale(
    "gpu",
    "about three hours on one data-centre GPU",
    "cuda",
    mixtures=((192, 16384), (512, 8192), (768, 8192)),
    michel_events=2048,
    trainings=(
        *(
            Training(
                f"sparse {size} px",
                SPARSE,
                size,
                batch=64,
                steps=200_000,
                seconds=1800.0,
                evaluate_every=500,
                held_out_events=96,
                tests=(
                    (*_ALL_TESTS, HeldOut(192, 2048, michel=True))
                    if size == 192
                    else (HeldOut(size, 96),)
                ),
            )
            for size in (192, 512, 768)
        ),
        *_pair(64, 3, 4, 5000, 500, 256, (SPARSE, DENSE, AS_PUBLISHED)),
        *_pair(0, 2, 4, 5000, 500, 256, (SPARSE, DENSE)),
        Training(
            "sparse 2 classes",
            SPARSE,
            512,
            batch=64,
            steps=200_000,
            seconds=900.0,
            classes=2,
            evaluate_every=500,
            held_out_events=96,
            tests=(HeldOut(512, 96),),
        ),
    ),
    costs=_GPU_COSTS,
)

PAPER = Scale(
    "paper",
    "the full study, 80,000 events per size; days on one data-centre GPU",
    "cuda",
    mixtures=((192, 80_000), (512, 80_000), (768, 80_000)),
    michel_events=16_384,
    trainings=(
        *(
            Training(
                f"{role} {size} px{f' batch {batch}' if batch == 4 else ''}",
                role,
                size,
                batch=batch,
                steps=40_000,
                evaluate_every=1000,
                held_out_events=96,
                tests=(
                    (*_ALL_TESTS, HeldOut(192, 16_384, michel=True))
                    if (role, size, batch) == (SPARSE, 192, 64)
                    else (HeldOut(size, 256 if size == 192 else 96),)
                ),
            )
            for role, size, batch in (
                (SPARSE, 192, 64),
                (SPARSE, 512, 64),
                (SPARSE, 768, 64),
                (SPARSE, 192, 4),
                (DENSE, 192, 4),
                (AS_PUBLISHED, 192, 4),
            )
        ),
        *_pair(0, 2, 4, 40_000, 1000, 256, (SPARSE, DENSE)),
        Training(
            "sparse 2 classes",
            SPARSE,
            512,
            batch=64,
            steps=40_000,
            classes=2,
            evaluate_every=1000,
            held_out_events=96,
            tests=(HeldOut(512, 96),),
        ),
    ),
    costs=_GPU_COSTS,
)

SCALES = {scale.name: scale for scale in (SMOKE, LAPTOP, GPU, PAPER)}


def find_scale(name: str) -> Scale:
    """Return a scale by its name.

    Raises
    ------
    BadInput
        If there is none.
    """
    if name not in SCALES:
        raise BadInput(f"there is no scale {name!r}; choose one of {', '.join(SCALES)}")
    return SCALES[name]
