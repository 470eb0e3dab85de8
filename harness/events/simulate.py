"""Simulation of events in liquid argon with Geant4.

Each event has one vertex, uniform in the image, from which particles leave isotropically; what
they are and how fast is a ``Preset``. Geant4 (the ``calzone`` package, extra ``simulate``) follows
them through liquid argon, ``digitise`` makes the image.

The events of a recipe are numbered and simulated in chunks of ``CHUNK``; each chunk has random
numbers of its own, drawn from the recipe's seed and the chunk's number. An event therefore does not
depend on the number of events requested nor on the number of processes. It is the same on all
machines whose mathematical libraries round alike.

Geant4 ends the whole process if something is missing, and therefore runs in child processes.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.child_process import die_with_parent, without_script
from harness.errors import BadInput, MachineFailure, missing_packages
from harness.events.argon_data import argon_data_folder
from harness.events.digitise import Deposits, digitise
from harness.events.event import Event, Label
from harness.temporary import run_folder

CHUNK = 16
"""Events simulated from one stream of random numbers."""

PITCH_CM = 0.3
"""Side of a voxel in cm."""

# Liquid argon around the image, so that particles also enter it from outside.
_MARGIN_CM = 30.0
# Secondaries that would travel less than this are not followed.
_PRODUCTION_CUT_CM = 0.05


@dataclass(frozen=True)
class Category:
    """Particles that are equally likely alternatives at the vertex.

    Attributes
    ----------
    particles : tuple of int
        PDG codes, drawn with equal probability.
    energy_mev : tuple of float
        Least and greatest kinetic energy; uniform between.
    most : int
        The category is not drawn more often than this at one vertex.
    """

    particles: tuple[int, ...]
    energy_mev: tuple[float, float]
    most: int


@dataclass(frozen=True)
class Preset:
    """The particles that leave the vertex.

    Attributes
    ----------
    categories : tuple of Category
        Drawn with equal probability until the multiplicity is reached.
    multiplicity : tuple of int
        Least and greatest number of particles; uniform between.
    """

    categories: tuple[Category, ...]
    multiplicity: tuple[int, int]


_LEPTONS = Category((11, -11, 13, -13), (50.0, 1000.0), 3)
_PHOTONS = Category((22,), (50.0, 1000.0), 2)
_PIONS = Category((211, -211), (50.0, 1000.0), 2)
_PROTONS = Category((2212,), (50.0, 400.0), 3)
# A muon of 150 MeV travels 55 cm in liquid argon: these stop inside most images. Positive ones
# all decay; three out of four negative ones are captured by the nucleus instead.
_STOPPING_MUONS = Category((-13,), (20.0, 150.0), 3)
# Muons that cross the image and knock out delta rays on all their way.
_FAST_MUONS = Category((13, -13), (500.0, 3000.0), 3)

PRESETS = {
    "standard": Preset((_LEPTONS, _PHOTONS, _PIONS, _PROTONS), (2, 5)),
    "michel": Preset((_STOPPING_MUONS, _LEPTONS, _PHOTONS, _PIONS, _PROTONS), (2, 5)),
    "delta": Preset((_FAST_MUONS, _LEPTONS, _PHOTONS, _PIONS, _PROTONS), (2, 5)),
}
"""``standard`` follows the public data set; ``michel`` adds muons that stop and decay, ``delta``
fast muons, which more than doubles the share of voxels of delta rays."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a sequence of simulated events.

    Attributes
    ----------
    size : int
        Voxels per side.
    seed : int
        Non-negative.
    preset : str
        A key of ``PRESETS``.
    """

    size: int
    seed: int
    preset: str = "standard"

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise BadInput(
                f"size {self.size} cannot be simulated; choose 16 to 4096 voxels per side"
            )
        if self.seed < 0:
            raise BadInput(f"seed {self.seed} is negative; choose 0 or more")
        if self.preset not in PRESETS:
            raise BadInput(f"preset {self.preset!r} is unknown; choose one of {', '.join(PRESETS)}")


def check_packages() -> None:
    """Make sure that the packages of the simulation are installed.

    Raises
    ------
    BadInput
        If calzone or xraydb is not installed.
    """
    missing = [name for name in ("calzone", "xraydb") if find_spec(name) is None]
    if missing:
        raise missing_packages(" and ".join(missing), "simulate")


def simulate(recipe: Recipe, count: int, *, processes: int | None = None) -> Iterator[Event]:
    """Simulate events ``0`` to ``count - 1`` of a recipe, in order.

    Parameters
    ----------
    recipe : Recipe
    count : int
        Number of events.
    processes : int, optional
        Child processes; as many as there are processors by default.

    Yields
    ------
    Event
        Possibly without any voxel: everything may have left the image.

    Raises
    ------
    BadInput
        If calzone or xraydb are not installed.
    SimulationError
        If a child process died.
    """
    check_packages()
    data = argon_data_folder()
    chunks = -(-count // CHUNK)
    processes = max(1, min(processes or available_processors(), chunks))
    with run_folder() as folder:
        delivered = 0
        for events in _simulated_chunks(recipe, chunks, processes, str(data), str(folder)):
            for event in events[: count - delivered]:
                delivered += 1
                yield event


class SimulationError(MachineFailure):
    """Geant4 ended its process; the message holds the end of its output."""


def _simulated_chunks(
    recipe: Recipe, chunks: int, processes: int, data: str, folder: str
) -> Iterator[list[Event]]:
    """Yield the chunks of a recipe in order; the child processes end with this generator."""
    context = multiprocessing.get_context("spawn")
    children: list[tuple[BaseProcess, Connection]] = []
    finished: dict[int, list[Event]] = {}
    submitted = delivered = 0
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(theirs, recipe, data, folder), daemon=True
            )
            with without_script():
                process.start()
            theirs.close()
            children.append((process, ours))
        idle = [connection for _, connection in children]
        busy: set[Connection] = set()
        while delivered < chunks:
            # Few chunks ahead of the consumer, so that memory stays bounded.
            while idle and submitted < min(chunks, delivered + 2 * processes):
                connection = idle.pop()
                connection.send(submitted)
                busy.add(connection)
                submitted += 1
            if delivered in finished:
                yield finished.pop(delivered)
                delivered += 1
                continue
            for connection in [c for c in wait(list(busy)) if isinstance(c, Connection)]:
                chunk, events = _result(connection, folder)
                finished[chunk] = events
                busy.remove(connection)
                idle.append(connection)
    finally:
        for child, connection in children:
            connection.close()
            child.kill()
        for child, _ in children:
            child.join()


def _result(connection: Connection, folder: str) -> tuple[int, list[Event]]:
    """Receive a chunk from a child process.

    Raises
    ------
    SimulationError
        If the process died or the simulation failed.
    """
    try:
        answer = connection.recv()
    except (EOFError, OSError) as death:
        raise SimulationError(
            "a simulation process died; repeat the command, with fewer --processes if memory is "
            "short; the end of its output: " + _end_of_output(folder)
        ) from death
    if isinstance(answer, BaseException):
        raise answer
    chunk, events = answer
    return chunk, events


def available_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(connection: Connection, recipe: Recipe, data: str, folder: str) -> None:
    """Simulate the chunks that the parent process requests, in a child process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.environ["GEANT4_DATA_DIR"] = data
    # Geant4 prints the reason before it aborts: keep it for the parent.
    log = os.open(os.path.join(folder, f"{os.getpid()}.log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    while True:
        try:
            chunk = connection.recv()
            answer: Any = chunk, _simulate_chunk(recipe, chunk)
        except EOFError:
            return
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer = SimulationError(f"the simulation failed: {type(error).__name__}: {first}")
        connection.send(answer)


def _end_of_output(folder: str) -> str:
    logs = sorted(Path(folder).glob("*.log"), key=lambda path: path.stat().st_size)
    text = logs[-1].read_text(errors="replace") if logs else ""
    return " ".join(text.split())[-500:] or "none"


def _simulate_chunk(recipe: Recipe, chunk: int) -> list[Event]:
    """Simulate events ``CHUNK * chunk`` and following, in a child process."""
    import calzone

    sequence = np.random.SeedSequence(recipe.seed, spawn_key=(chunk,))
    vertex_seed, geant4_seed = sequence.spawn(2)
    primaries = draw_primaries(
        PRESETS[recipe.preset], recipe.size, np.random.default_rng(vertex_seed)
    )

    side = recipe.size * PITCH_CM
    image = {"box": [side] * 3, "material": "G4_lAr", "role": "record_deposits"}
    world = {"box": [side + 2 * _MARGIN_CM] * 3, "material": "G4_lAr", "Image": image}
    simulation = calzone.Simulation({"World": world}, tracking=True, sample_deposits="detailed")
    simulation.physics = calzone.Physics(
        "standard", default_cut=_PRODUCTION_CUT_CM, had_model="FTFP_BERT"
    )
    simulation.random = calzone.Random(int(geant4_seed.generate_state(1, np.uint64)[0]))

    particles = calzone.particles(len(primaries))
    particles["pid"] = primaries["pid"]
    particles["energy"] = primaries["energy"]
    particles["position"] = primaries["position"]
    particles["direction"] = primaries["direction"]
    result = simulation.run(particles)

    deposits = _deposits(result, primaries["event"], recipe.size)
    names = [
        f"simulated, {recipe.preset}, {recipe.size} px, seed {recipe.seed}, event {i}"
        for i in range(CHUNK * chunk, CHUNK * (chunk + 1))
    ]
    return digitise(deposits, recipe.size, names)


_PRIMARY = np.dtype(
    [
        ("event", np.int64),
        ("pid", np.int32),
        ("energy", np.float64),
        ("position", np.float64, 3),
        ("direction", np.float64, 3),
    ]
)


def draw_primaries(preset: Preset, size: int, rng: np.random.Generator) -> NDArray[np.void]:
    """Draw the particles that leave the vertices of one chunk.

    Parameters
    ----------
    preset : Preset
    size : int
        Voxels per side.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray
        Fields ``event`` (0 to CHUNK - 1), ``pid``, ``energy`` [MeV], ``position`` [cm from the
        centre of the image] and ``direction`` (unit vector).
    """
    rows = []
    half = size * PITCH_CM / 2
    for event in range(CHUNK):
        vertex = rng.uniform(-half, half, 3)
        drawn = [0] * len(preset.categories)
        multiplicity = rng.integers(preset.multiplicity[0], preset.multiplicity[1] + 1)
        while sum(drawn) < multiplicity:
            kind = int(rng.integers(len(preset.categories)))
            category = preset.categories[kind]
            if drawn[kind] == category.most:
                continue
            drawn[kind] += 1
            pid = category.particles[rng.integers(len(category.particles))]
            energy = rng.uniform(*category.energy_mev)
            rows.append((event, pid, energy, vertex, _isotropic(rng)))
    return np.array(rows, _PRIMARY)


def _isotropic(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a unit vector by rejection: no function whose rounding differs between libraries."""
    while True:
        x, y, z = rng.uniform(-1, 1, 3).tolist()
        squared = x * x + y * y + z * z
        if 1e-6 < squared <= 1:
            vector: NDArray[np.float64] = np.array([x, y, z]) / np.sqrt(squared)
            return vector


def _deposits(result: Any, event_of_primary: NDArray[np.int64], size: int) -> Deposits:
    """Gather calzone's line and point deposits, each with the class of its track."""
    tracks = result.tracks
    recorded = result.deposits
    if not recorded:
        empty = np.zeros(0)
        none = np.zeros(0, np.int64)
        return Deposits(empty.reshape(0, 3), empty.reshape(0, 3), empty, none, none)
    (image,) = recorded.values()
    lines, points = image.line, image.point
    # calzone calls every primary particle an event.
    primary = np.concatenate([lines["event"], points["event"]]).astype(np.int64)
    track = np.concatenate([lines["tid"], points["tid"]])
    order = np.lexsort((tracks["tid"], tracks["event"]))
    tracks = tracks[order]
    track_keys = _track_keys(tracks["event"], tracks["tid"])
    labels = label_tracks(
        tracks["event"], tracks["tid"], tracks["parent"], tracks["pid"], tracks["creator"]
    )
    return Deposits(
        np.concatenate([lines["start"], points["position"]]) / PITCH_CM + size / 2,
        np.concatenate([lines["end"], points["position"]]) / PITCH_CM + size / 2,
        np.concatenate([lines["value"], points["value"]]),
        event_of_primary[primary],
        labels[np.searchsorted(track_keys, _track_keys(primary, track))],
    )


def _track_keys(
    event: NDArray[np.integer[Any]], track: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = event.astype(np.int64) << 32 | track
    return keys


def label_tracks(
    event: NDArray[np.integer[Any]],
    track: NDArray[np.integer[Any]],
    parent: NDArray[np.integer[Any]],
    pid: NDArray[np.integer[Any]],
    creator: NDArray[np.bytes_],
) -> NDArray[np.int64]:
    """Classify tracks by the rule of the public data set.

    Protons are HIP; particles other than protons, electrons and photons are MIP. Electrons,
    positrons and photons have the class of the start of their cascade: a delta ray where a heavier
    particle knocked out an electron, a Michel electron where it comes from the decay or capture of
    a muon, a shower otherwise. The photons that a Michel electron radiates are Michel in the data
    set, too: 33 of the 78 separate pieces of event 48 of dlprod_192px_00.

    Parameters
    ----------
    event, track : ndarray of int, shape (T,)
        Sorted by event, then by track number.
    parent : ndarray of int, shape (T,)
        Number of the parent track; 0 for primaries.
    pid : ndarray of int, shape (T,)
        PDG code.
    creator : ndarray of bytes, shape (T,)
        calzone's name of the process that made the track.

    Returns
    -------
    ndarray of int64, shape (T,)
        ``Label`` values of the five classes.
    """
    own = np.arange(len(track))
    parent_row = np.searchsorted(_track_keys(event, track), _track_keys(event, parent))
    parent_row = np.where(parent > 0, np.minimum(parent_row, len(track) - 1), own)
    parent_pid = np.abs(pid[parent_row])
    electron = np.abs(pid) == 11
    in_cascade = (electron | (pid == 22)) & (parent > 0) & np.isin(parent_pid, (11, 22))

    labels = np.full(len(track), Label.MIP, np.int64)
    labels[np.abs(pid) == 2212] = Label.HIP
    labels[electron | (pid == 22)] = Label.SHOWER
    labels[electron & (parent > 0) & (creator == b"Ionisation")] = Label.DELTA
    from_muon = electron & (parent > 0) & (parent_pid == 13)
    labels[from_muon & np.isin(creator, (b"Decay", b"Capture"))] = Label.MICHEL

    ancestor = np.where(in_cascade, parent_row, own)
    while True:
        older = ancestor[ancestor]
        if np.array_equal(older, ancestor):
            return labels[ancestor]
        ancestor = older
