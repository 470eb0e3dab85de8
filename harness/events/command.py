"""The command line of event sets: ``python -m harness events VERB``."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from harness.errors import BadInput
from harness.events.cache import cache_directory
from harness.events.child_reader import open_in_child
from harness.events.event_set import EventSet
from harness.events.open import SAMPLE
from harness.files import check_target

app = typer.Typer(
    no_args_is_help=True, help="Event sets: inspect, simulate, download and convert them."
)

Source = Annotated[
    str, typer.Argument(help="'sample', or a larcv2, larcv3, PILArNet-M or sscn-bench file")
]
Size = Annotated[int | None, typer.Option(help="Voxels per side")]
Processes = Annotated[int | None, typer.Option(min=1, help="Default: all processors")]
Item = TypeVar("Item")


@app.command()
def info(
    source: Source = SAMPLE,
    size: Size = None,
    count: Annotated[int, typer.Option(min=1, help="Events to read")] = 48,
    first: Annotated[int, typer.Option(min=0, help="The first of them")] = 0,
    plane: Annotated[str | None, typer.Option(help="Project on xy, yz or zx")] = None,
) -> None:
    """Print the statistics that determine the work, beside those of a real event and the talk."""
    from harness.events.info import statistics_table
    from harness.events.sample import COUNTS
    from harness.events.statistics import summarise

    console = Console()
    sizes = tuple(COUNTS) if size is None and source == SAMPLE else (size,)
    for each in sizes:
        with _opened(source, each, plane) as chosen:
            part = _part(chosen, first, count)
            title = escape(f"{chosen.name}: {len(chosen):,} events")
            measured = summarise(_tracked(part, len(part), "reading"))
            console.print(statistics_table(measured, title))


@app.command()
def view(
    source: Source = SAMPLE,
    size: Size = None,
    event: Annotated[int, typer.Option(help="Number of the event; negative from the end")] = 0,
    out: Annotated[
        Path, typer.Option(help="The page; the picture has the same name with .png")
    ] = Path("event.html"),
    plane: Annotated[str | None, typer.Option(help="Project on xy, yz or zx")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A file of `harness predict`, to be shown beside the truth")
    ] = None,
) -> None:
    """Write an interactive 3D page of an event, and a PNG beside it."""
    from harness.events.predictions import read_labels
    from harness.events.view import write_event_page, write_event_picture

    if predictions is not None and plane is not None:
        raise BadInput("predictions are of whole events; leave out --plane")
    picture = out.with_suffix(".png")
    if picture == out:
        raise BadInput(f"{out} is the name of the picture; give the page's, such as event.html")
    check_target(out, "--out")
    check_target(picture, "--out")
    with _opened(source, size, plane) as events:
        if not -len(events) <= event < len(events):
            raise BadInput(f"{events.name} has {len(events)} events; there is no event {event}")
        chosen = events[event]
        predicted = None
        if predictions is not None:
            predicted = read_labels(predictions, events, event % len(events))
    write_event_page(chosen, out, predicted)
    write_event_picture(chosen, picture, predicted)
    typer.echo(f"{out}\n{picture}")


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The HDF5 file to write")],
    size: Annotated[int, typer.Option(help="Voxels per side")] = 192,
    count: Annotated[int, typer.Option(min=1, help="Number of events")] = 100,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes")] = 0,
    preset: Annotated[
        str, typer.Option(help="standard, or michel for stopping muons")
    ] = "standard",
    processes: Processes = None,
) -> None:
    """Simulate events with Geant4 (extra 'simulate')."""
    from harness.events.native import EventWriter
    from harness.events.simulate import Recipe
    from harness.events.simulate import simulate as simulated

    check_target(out, "--out")
    recipe = Recipe(size, seed, preset)
    events = simulated(recipe, count, processes=processes)
    with EventWriter(out, size, 3, f"Geant4 11.4 simulation, {recipe}") as writer:
        for event in _tracked(events, count, "simulating"):
            writer.append(event)
    typer.echo(f"{out}: {count} events")


@app.command()
def fetch(
    size: Annotated[int, typer.Option(help="Voxels per side: 192, 512 or 768")],
    files: Annotated[str, typer.Option(help="File numbers, such as 0-1 or 0,3")] = "0",
    cache: Annotated[Path | None, typer.Option(help="Folder for the files")] = None,
    api: Annotated[str | None, typer.Option(help="Address of a mirror of OSF's interface")] = None,
) -> None:
    """Download files of the public data set from OSF."""
    from harness.events import osf

    numbers = osf.parse_numbers(files)
    folder = cache or cache_directory() / "osf"
    with _download_progress() as progress:
        for path in osf.fetch(size, numbers, folder, api=api or osf.API, progress=progress):
            typer.echo(path)


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The HDF5 file to write")],
    size: Size = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Events to convert, all by default")
    ] = None,
    first: Annotated[int, typer.Option(min=0, help="The first of them")] = 0,
    plane: Annotated[str | None, typer.Option(help="Project on xy, yz or zx")] = None,
    to: Annotated[str, typer.Option(help="sscn-bench, or spine for training SPINE")] = "sscn-bench",
) -> None:
    """Write the events of any source to the project's own format, or to SPINE's."""
    from harness.events.native import EventWriter
    from harness.events.spine_file import SpineWriter

    if to not in ("sscn-bench", "spine"):
        raise BadInput(f"--to must be sscn-bench or spine, not {to!r}")
    check_target(out)
    with _opened(source, size, plane) as events:
        if out.exists() and Path(source).exists() and out.samefile(source):
            raise BadInput(f"{out} is the source itself; choose another name")
        part = _part(events, first, len(events) if count is None else count)
        dim = 3 if plane is None else 2
        if plane is None and len(part):
            dim = part[0].dim
        with (
            SpineWriter(out, dim)
            if to == "spine"
            else EventWriter(out, events.size, dim, f"converted from {part.name}")
        ) as writer:
            for event in _tracked(part, len(part), "converting"):
                writer.append(event)
    typer.echo(f"{out}: {len(part)} events")


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the files")],
    processes: Processes = None,
) -> None:
    """Make the packed sample of the package again, byte for byte."""
    from harness.events.sample import SHA256, make_sample

    for size, path, sha256 in make_sample(out, processes=processes):
        verdict = "as in the package" if sha256 == SHA256[size] else "DIFFERS from the package"
        typer.echo(f"{path}  sha256 {sha256}  {verdict}")


def _opened(source: str, size: int | None, plane: str | None) -> EventSet:
    from harness.events.projection import ProjectedSet

    events = open_in_child(source, size=size)
    return events if plane is None else ProjectedSet(events, plane)


def _part(events: EventSet, first: int, count: int) -> EventSet:
    if first >= len(events):
        raise BadInput(f"{events.name} has {len(events)} events; there is no event {first}")
    return events[first : first + count]


def _tracked(items: Iterable[Item], total: int, doing: str) -> Iterator[Item]:
    console = Console(stderr=True)
    with Progress(
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield from progress.track(items, total=total)


class _DownloadBar:
    """Progress bar of a download, in the form that pooch uses."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("download", total=None)

    @property
    def total(self) -> int:
        return int(self._progress.tasks[0].total or 0)

    @total.setter
    def total(self, total: int) -> None:
        self._progress.reset(self._task, total=total)

    def update(self, count: int) -> None:
        self._progress.update(self._task, advance=count)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.refresh()


@contextmanager
def _download_progress() -> Iterator[_DownloadBar]:
    console = Console(stderr=True)
    with Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield _DownloadBar(progress)


if __name__ == "__main__":
    app()
