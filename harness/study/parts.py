"""Conducts a study: events, trainings, costs and the page, each part done once however often asked.

Everything lies in one folder. What is complete is not done again, so a study that was killed goes
on where it stopped when the same command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backends.registry import names, probe_all
from harness.errors import BadInput
from harness.run.plan import Availability
from harness.study import mixture, trainer
from harness.study.cells import Engines, cost_jobs
from harness.study.costs import measure
from harness.study.plan import Plan
from harness.study.scales import AS_PUBLISHED, DENSE, HeldOut, Scale, Training, find_scale
from harness.study.views import View

MIXTURE_SEED = 100_000
MICHEL_SEED = 900_000
"""Seeds of simulated events; the packed sample has another, so nothing is learnt from tests."""


@dataclass(frozen=True)
class Study:
    """One study: a scale on an engine, in a folder.

    Attributes
    ----------
    out : Path
        Everything it makes lies here.
    scale : str
    backend : str
        The sparse engine that learns.
    also : tuple of str
        Sparse engines whose costs are measured beside.
    precision : str
    minutes : float
        Of the first training; 0 for what the scale says.
    """

    out: Path
    scale: str
    backend: str = "sscn"
    also: tuple[str, ...] = ()
    precision: str = "fp32"
    minutes: float = 0.0

    @property
    def plan_of_work(self) -> Scale:
        """The scale, with the minutes that were asked for."""
        scale = find_scale(self.scale)
        return scale.lasting(self.minutes) if self.minutes else scale

    @property
    def records(self) -> Path:
        """Records of trainings and cells."""
        return self.out / "records.jsonl"

    @property
    def engines(self) -> Engines:
        """Who is measured; the dense network of 2018 where an engine of that name is known."""
        sparse = tuple(dict.fromkeys((self.backend, *self.also)))
        dense = tuple(name for name in (DENSE, AS_PUBLISHED) if name in names())
        return Engines(sparse, dense)

    def training_folder(self, training: Training) -> Path:
        """Where a training and its predictions lie."""
        return self.out / "training" / training.name.replace(" ", "-")

    def mixture_folder(self, size: int) -> Path:
        """Where the training events of a size lie."""
        return self.out / "events" / f"mixture-{size}px"

    @property
    def michel_folder(self) -> Path:
        """Where the held-out events with many stopping muons lie."""
        return self.out / "events" / "michel-test-192px"

    def backend_of(self, training: Training) -> str:
        """The engine that a training runs on."""
        return training.role if training.role in (DENSE, AS_PUBLISHED) else self.backend

    def view(self, training: Training, size: int, source: Path | str) -> View:
        """Look at events as a training does."""
        return View(str(source), size, training.classes, training.dim, training.crop)

    def test_view(self, training: Training, test: HeldOut) -> View:
        """The held-out events of a test."""
        return self.view(training, test.size, self.michel_folder if test.michel else "sample")

    def plan(self, training: Training) -> Plan:
        """Return everything that determines a training."""
        scale = self.plan_of_work
        model = replace(scale.model, classes=training.classes)
        return Plan(
            name=training.name,
            backend=self.backend_of(training),
            events=self.view(training, training.size, self.mixture_folder(training.size)),
            held_out=self.view(training, training.size, "sample"),
            batch=training.batch,
            steps=training.steps,
            seconds=training.seconds,
            evaluate_every=training.evaluate_every,
            held_out_events=training.held_out_events,
            optimiser=training.optimiser,
            learning_rate=training.learning_rate,
            warm_up=training.warm_up,
            average=training.average,
            device=scale.device,
            precision=self.precision,
            model=model,
        )


def predictions_name(test: HeldOut) -> str:
    """Name the file of a test's predictions."""
    return f"{'michel' if test.michel else 'sample'}-{test.size}px"


def begin(study: Study) -> None:
    """Write down what the folder holds, or make sure that it is this study's.

    The engines measured beside and the minutes may change: a study is extended by them.

    Raises
    ------
    BadInput
        If another study has begun there.
    """
    path = study.out / "study.json"
    if path.exists():
        begun = read(study.out)
        if (begun.scale, begun.backend, begun.precision) != (
            study.scale,
            study.backend,
            study.precision,
        ):
            raise BadInput(f"{study.out} holds a study with other options; give another --out")
    study.out.mkdir(parents=True, exist_ok=True)
    values = asdict(study) | {"out": "", "also": list(study.also)}
    path.write_text(json.dumps(values, indent=1) + "\n")


def read(out: Path) -> Study:
    """Return the study that a folder holds.

    Raises
    ------
    BadInput
        If it holds none.
    """
    try:
        values = json.loads((out / "study.json").read_text())
    except (OSError, ValueError):
        raise BadInput(f"{out} holds no study; make one with: harness study --out {out}") from None
    return Study(**values | {"out": out, "also": tuple(values["also"])})


def conduct(study: Study, console: Console) -> Path:
    """Do whatever the study still lacks, and write its page.

    Returns
    -------
    Path
        The page.
    """
    from harness.study.page import write_page

    scale = study.plan_of_work
    console.print(scale.describe(), highlight=False, soft_wrap=True)
    found = _probe(study)
    begin(study)
    make_events(study, scale, console)
    for training in scale.trainings:
        learn(study, training, found, console)
    jobs = cost_jobs(
        scale.costs,
        study.engines,
        scale.device,
        study.precision,
        scale.model,
        study.out / "events",
    )
    measure(jobs, study.records, found, console, timeout=scale.costs.timeout)
    return write_page(study)


def _probe(study: Study) -> Mapping[str, Availability]:
    engines = (*study.engines.sparse, *study.engines.dense)
    found = {answer.name: answer for answer in probe_all(engines)}
    can = found[study.backend].capabilities
    if can is None:
        raise BadInput(f"{study.backend} cannot run here: {found[study.backend].reason}")
    device = find_scale(study.scale).device
    if device not in can.devices:
        raise BadInput(
            f"the scale {study.scale} needs {device}, where {study.backend} does not run here; "
            "choose another scale"
        )
    return found


def make_events(study: Study, scale: Scale, console: Console) -> None:
    """Simulate the events that are missing, with progress."""
    wanted: list[tuple[Path, int, int, int, tuple[str, ...]]] = [
        (study.mixture_folder(size), size, count, MIXTURE_SEED + 1000 * size, mixture.PRESETS)
        for size, count in scale.mixtures
    ]
    wanted.append((study.michel_folder, 192, scale.michel_events, MICHEL_SEED, ("michel",)))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        for folder, size, count, seed, presets in wanted:
            line = live.add_task(f"events of {size} px", total=count)

            def show(done: int, total: int, line: int = int(line)) -> None:
                live.update(line, completed=done)  # type: ignore[arg-type]

            mixture.make_mixture(folder, size, count, seed, show, presets=presets)
            console.print(f"{count:,} events of {size} px in {folder.name}", highlight=False)


def learn(
    study: Study, training: Training, found: Mapping[str, Availability], console: Console
) -> None:
    """Do one training with its tests, unless its engine cannot run here."""
    backend = study.backend_of(training)
    answer = found.get(backend)
    if answer is None or answer.capabilities is None:
        reason = answer.reason if answer else "no engine has this name"
        console.print(f"{training.name}: {backend} cannot run here: {reason}", highlight=False)
        return
    tests = {
        predictions_name(test): (study.test_view(training, test), test.events)
        for test in training.tests
    }
    folder = study.training_folder(training)
    trainer.run(folder, study.plan(training), tests, study.records, console)
